"""Commands that say what the page shows."""
