"""The keys of the secrets' store: what they are, where they come from, and how values are sealed with them."""
