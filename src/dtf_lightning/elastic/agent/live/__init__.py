"""The agent of a live run: workers stay the same processes while the world changes."""
