"""What a view can be saved as: its tables, its drawings, and itself as one file."""
