"""A worker takes part in a run here: it enters generations, trains, unwinds, and leaves or finishes. Internal."""
