"""What clients are told over their WebSocket as it happens."""
