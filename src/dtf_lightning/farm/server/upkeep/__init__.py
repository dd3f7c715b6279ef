"""What keeps a farm from filling up: etcd's database, and the files that coordinators share."""
