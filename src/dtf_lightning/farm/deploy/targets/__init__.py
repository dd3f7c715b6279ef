"""A renderer for each target: the deployment in, files out. Pure."""
