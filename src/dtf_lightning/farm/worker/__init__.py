"""A farm worker's hands: it runs attempts as processes, keeps what they gave until it is recorded, and says what it has."""
