"""The records of a project's secrets, whose values are sealed."""
