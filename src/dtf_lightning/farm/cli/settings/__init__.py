"""Commands about settings files: check one, show what it means, print its schema."""
