"""Commands about who may talk to a farm, and over what wire."""
