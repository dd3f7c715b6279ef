"""A job over a farm as each forge's pipeline files. Pure."""
