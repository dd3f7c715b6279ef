"""A coordinator's eye on its farm: what is seen, and what that means by `rules.watching`."""
