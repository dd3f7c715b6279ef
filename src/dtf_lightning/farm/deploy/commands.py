"""The command lines of `dtf farm` that deployments run. A test parses each by the command line's own parser. Pure."""

from __future__ import annotations

from dtf_lightning.farm.deploy.files import FarmCommand


def coordinator(config: str) -> FarmCommand:
    """One coordinator, by its settings file."""
    return FarmCommand(words=("farm", "coordinator", "--config", config))


def worker(config: str) -> FarmCommand:
    """One worker, by its settings file."""
    return FarmCommand(words=("farm", "worker", "--config", config))


def backup(config: str, folder: str, keep: int = 14) -> FarmCommand:
    """A backup into a folder of them."""
    return FarmCommand(words=("farm", "backup", "--config", config, "--keep", str(keep), folder))
