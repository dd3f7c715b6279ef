"""Restores a committed position: undoes what an interrupted optimizer step, validation or hook has changed. Internal."""
