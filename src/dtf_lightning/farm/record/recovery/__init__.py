"""What a farm does by itself about its machines, in the record."""
