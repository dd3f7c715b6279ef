"""The agent of a restart-mode run: torchelastic starts the workers anew whenever the world changes."""
