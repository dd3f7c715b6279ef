"""The host: what Lightning needs to be elastic. `loops.py` is the only file that overrides Lightning's private API."""
