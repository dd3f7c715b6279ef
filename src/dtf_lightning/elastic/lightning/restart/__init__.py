"""A run whose workers are started anew on every change: how they meet, what they leave behind, where they go on."""
