"""What is submitted by itself, or not anew: times of schedules, results that are used again, what tells requests apart."""
