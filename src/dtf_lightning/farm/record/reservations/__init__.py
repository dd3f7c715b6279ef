"""Workers that people have reserved, for maintenance or for a project."""
