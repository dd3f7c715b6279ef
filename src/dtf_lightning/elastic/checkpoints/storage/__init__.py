"""Where checkpoints lie: a local folder, or a URL that fsspec understands."""
