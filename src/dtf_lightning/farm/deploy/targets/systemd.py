"""`systemd`: units of a coordinator, a worker, the page and the nightly backup, and a script that installs them on a machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from dtf_lightning.farm.deploy import commands
from dtf_lightning.farm.deploy.files import FarmCommand, RenderedFile
from dtf_lightning.farm.deploy.settings_files import (
    Places,
    Wanted,
    coordinator_sections,
    settings_file,
    worker_sections,
)
from dtf_lightning.farm.deploy.templates import render

PLACES = Places(config="/etc/dtf-farm", secrets="/etc/dtf-farm/secrets", state="/var/lib/dtf-farm")
BACKUPS = "/var/backups/dtf-farm"
PREFIX = "/opt/dtf-farm"
PROGRAM = f"{PREFIX}/bin/dtf"
PAGE_PORT = 8443
DRAINING = 3600
"""Seconds for a worker to finish what it runs, once it is told to end."""

Section = list[tuple[str, str]]

HARDENED: Section = [
    ("NoNewPrivileges", "yes"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("RestrictRealtime", "yes"),
    ("LockPersonality", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("UMask", "0077"),
]
CLOSED: Section = [
    ("ProtectSystem", "strict"),
    ("PrivateDevices", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectProc", "invisible"),
    ("RestrictNamespaces", "yes"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ("SystemCallArchitectures", "native"),
    ("MemoryDenyWriteExecute", "no"),  # Python's ctypes and the results' database make code at run time
]
"""Of what runs no tasks."""


def render_systemd(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    user = wanted.deployment.user
    config = f"{PLACES.config}/coordinator.yaml"
    page, worker_config = f"{PLACES.config}/page.yaml", f"{PLACES.config}/worker.yaml"
    coordinator, of_page = commands.coordinator(config), commands.coordinator(page)
    worker, backup = commands.worker(worker_config), commands.backup(config, BACKUPS)
    serving: Section = [("StateDirectory", "dtf-farm"), ("StateDirectoryMode", "0700"), ("LimitNOFILE", "65536")]
    units = {
        "dtf-farm-coordinator.service": _service(
            "coordinator", coordinator, user, [*serving, ("TimeoutStopSec", "30"), *HARDENED, *CLOSED]
        ),
        "dtf-farm-page.service": _service(
            "coordinator that people open",
            of_page,
            user,
            [("Environment", "COORDINATOR_ID=page-%H"), *serving, ("TimeoutStopSec", "30"), *HARDENED, *CLOSED],
        ),
        "dtf-farm-worker.service": _service(
            "worker",
            worker,
            user,
            [
                *serving,
                ("Delegate", "yes"),  # limits of memory for its tasks
                ("KillMode", "process"),  # tasks outlive a worker that is started anew
                ("TimeoutStopSec", str(DRAINING)),
                ("ProtectSystem", "full"),
                *HARDENED,
            ],
        ),
        "dtf-farm-backup.service": _unit(
            backup,
            {
                "Unit": [("Description", "Backup of the dtf farm"), ("After", "network-online.target")],
                "Service": [
                    ("Type", "oneshot"),
                    ("User", user),
                    ("ExecStart", command_line(backup)),
                    ("ReadWritePaths", BACKUPS),
                    ("StateDirectory", "dtf-farm"),
                    ("StateDirectoryMode", "0700"),
                    *HARDENED,
                    *CLOSED,
                ],
            },
        ),
        "dtf-farm-backup.timer": _unit(
            backup,
            {
                "Unit": [("Description", "Nightly backup of the dtf farm")],
                "Timer": [
                    ("OnCalendar", "*-*-* 03:17:00"),
                    ("RandomizedDelaySec", "15min"),
                    ("Persistent", "true"),
                ],
                "Install": [("WantedBy", "timers.target")],
            },
        ),
    }
    over = {"server": {"port": PAGE_PORT, "workers_port": None, "dashboard_port": None}}
    return [
        settings_file("coordinator.yaml", coordinator_sections(wanted, PLACES), coordinator),
        settings_file("page.yaml", coordinator_sections(wanted, PLACES, over=over), of_page),
        settings_file("worker.yaml", worker_sections(wanted, PLACES), worker),
        *(RenderedFile(name=name, text=text) for name, text in units.items()),
        RenderedFile(
            name="install.sh",
            executable=True,
            text=render(
                "install.sh.j2",
                package=wanted.deployment.package,
                user=user,
                prefix=PREFIX,
                config=PLACES.config,
                secrets=PLACES.secrets,
                backups=BACKUPS,
                roles={
                    "coordinator": (["coordinator.yaml"], ["dtf-farm-coordinator.service"]),
                    "worker": (["worker.yaml"], ["dtf-farm-worker.service"]),
                    "page": (["page.yaml"], ["dtf-farm-page.service"]),
                    "backup": (["coordinator.yaml"], ["dtf-farm-backup.service", "dtf-farm-backup.timer"]),
                },
                lines=[one.line(PROGRAM) for one in (coordinator, of_page, worker, backup)],
            ),
        ),
    ]


def _service(what: str, command: FarmCommand, user: str, more: Section) -> str:
    return _unit(
        command,
        {
            "Unit": [
                ("Description", f"dtf farm: {what}"),
                ("Wants", "network-online.target"),
                ("After", "network-online.target"),
                ("StartLimitIntervalSec", "0"),  # crash-only: it is started again as long as it takes
            ],
            "Service": [
                ("Type", "exec"),
                ("User", user),
                ("ExecStart", command_line(command)),
                ("Restart", "on-failure"),
                ("RestartSec", "2"),
                *more,
            ],
            "Install": [("WantedBy", "multi-user.target")],
        },
    )


def _unit(command: FarmCommand, sections: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    lines = [f"# Runs: {command.line()}"]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key}={value}" for key, value in values), ""]
    return "\n".join(lines[:-1]) + "\n"


def command_line(command: FarmCommand) -> str:
    """Return a command as `ExecStart` reads it (systemd.service(5), "Command lines")."""
    return " ".join(_word(word) for word in (PROGRAM, *command.words))


def _word(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[A-Za-z0-9_./:=@,+%$-]+", escaped) else f'"{escaped}"'
