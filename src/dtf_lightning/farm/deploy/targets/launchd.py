"""`launchd`: property lists for macOS, by plistlib. Nothing here has run on macOS: the files are checked by their format alone."""

from __future__ import annotations

import plistlib
from typing import Any

from dtf_lightning.farm.deploy import commands
from dtf_lightning.farm.deploy.files import FarmCommand, RenderedFile
from dtf_lightning.farm.deploy.settings_files import (
    Places,
    Wanted,
    coordinator_sections,
    settings_file,
    worker_sections,
)

PLACES = Places(
    config="/usr/local/etc/dtf-farm", secrets="/usr/local/etc/dtf-farm/secrets", state="/usr/local/var/dtf-farm"
)
PROGRAM = "/usr/local/opt/dtf-farm/bin/dtf"
LOGS = "/usr/local/var/log/dtf-farm"


def render_launchd(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    coordinator = commands.coordinator(PLACES(PLACES.config, "coordinator.yaml"))
    worker = commands.worker(PLACES(PLACES.config, "worker.yaml"))
    user = f"_{wanted.deployment.user}"
    return [
        settings_file("coordinator.yaml", coordinator_sections(wanted, PLACES), coordinator),
        settings_file("worker.yaml", worker_sections(wanted, PLACES), worker),
        _job("coordinator", coordinator, user),
        _job("worker", worker, user),
    ]


def _job(role: str, command: FarmCommand, user: str) -> RenderedFile:
    label = f"org.dtf-lightning.farm.{role}"
    job: dict[str, Any] = {
        "Label": label,
        "ProgramArguments": [PROGRAM, *command.words],
        "UserName": user,
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 2,
        "ProcessType": "Standard",
        "ExitTimeOut": 3600 if role == "worker" else 30,
        "Umask": 0o077,
        "WorkingDirectory": PLACES.state,
        "StandardOutPath": f"{LOGS}/{role}.log",
        "StandardErrorPath": f"{LOGS}/{role}.log",
        "SoftResourceLimits": {"NumberOfFiles": 65536},
        "HardResourceLimits": {"NumberOfFiles": 65536},
    }
    return RenderedFile(name=f"{label}.plist", text=plistlib.dumps(job, sort_keys=False).decode())
