"""Loaders whose share of the data changes with the world, in terms of Lightning's loops."""
