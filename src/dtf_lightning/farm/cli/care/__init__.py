"""Commands that take care of a farm: backups, deployments, a look at a machine."""
