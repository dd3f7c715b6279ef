"""Lists of what a coordinator knows, in pages."""
