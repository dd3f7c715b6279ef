"""Alerts of a farm: the leader opens and ends incidents and tells them, and people acknowledge and silence them."""
