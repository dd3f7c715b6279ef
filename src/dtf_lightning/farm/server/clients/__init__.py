"""What a coordinator does for clients beside accepting and showing tasks: tries them again, feeds them, knows results."""
