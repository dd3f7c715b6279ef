"""The commands of this folder, in one call."""

from __future__ import annotations

from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.verdicts.bisect import add_bisect
from dtf_lightning.farm.cli.verdicts.blame import add_blame
from dtf_lightning.farm.cli.verdicts.compare import add_compare
from dtf_lightning.farm.cli.verdicts.quarantine import add_quarantine


def add_verdicts(actions: Commands) -> None:
    """Add them to those of `dtf farm`."""
    add_compare(actions)
    add_bisect(actions)
    add_blame(actions)
    add_quarantine(actions)
