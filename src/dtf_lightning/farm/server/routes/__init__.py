"""The routes of a coordinator beside those of `api.py`, and the table of their operations."""
