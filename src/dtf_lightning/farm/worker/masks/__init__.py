"""What attempts have left, without their secrets."""
