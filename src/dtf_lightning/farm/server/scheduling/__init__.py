"""What a coordinator and its leader do about tasks beside placing single ones."""
