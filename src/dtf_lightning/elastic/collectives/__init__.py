"""Process groups that come and go, and what members of a group send each other."""
