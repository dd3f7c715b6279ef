"""Workers that were written by others, and speak REST."""
