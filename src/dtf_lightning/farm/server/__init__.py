"""A coordinator: REST, the workers' connections, and the leader's loop. It holds no truth and may die at any time."""
