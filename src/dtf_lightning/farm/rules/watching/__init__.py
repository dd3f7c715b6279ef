"""What is seen of a farm, and what that means: kinds of machines, and findings on what is wrong."""
