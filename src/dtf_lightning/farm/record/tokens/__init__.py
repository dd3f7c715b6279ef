"""What the record holds of who may talk to the farm, and how that is written."""
