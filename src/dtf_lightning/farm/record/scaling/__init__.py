"""What the leader that scales the farm has asked for, so that the next one goes on."""
