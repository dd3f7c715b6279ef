"""The commands that take care of a farm and of its machines, and those for continuous integration."""

from __future__ import annotations

from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.care.alerts import add_alerts
from dtf_lightning.farm.cli.care.backup import add_backup
from dtf_lightning.farm.cli.care.deploy import add_deploy
from dtf_lightning.farm.cli.care.doctor import add_doctor
from dtf_lightning.farm.cli.ci.commands import add_ci


def add_care(actions: Commands) -> None:
    """Add the commands."""
    add_alerts(actions)
    add_backup(actions)
    add_deploy(actions)
    add_doctor(actions)
    add_ci(actions)
