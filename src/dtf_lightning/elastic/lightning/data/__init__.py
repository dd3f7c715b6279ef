"""Data loaders whose share of the data changes with the world, as Lightning's loops see them. Internal."""
