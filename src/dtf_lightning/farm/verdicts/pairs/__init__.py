"""Pairs of runs of two programs in random order: how many, what they say at each look, and the sentence about it."""
