"""One worker's part in a run: it enters generations, trains, unwinds, and leaves or finishes."""
