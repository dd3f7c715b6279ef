"""What all members must have alike, and what an elastic run refuses: compared, counted, and said in words."""
