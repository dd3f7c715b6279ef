"""The farm's decisions: pure functions and values, of the standard library only. No clock, no input and output."""
