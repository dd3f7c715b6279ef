"""What the record holds of schedules, and how it is written."""
