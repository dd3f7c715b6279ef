"""Restart mode of a worker's run: new processes meet on every change and resume from the state the last ones left."""
