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

ROLES = {
    "coordinator": (["coordinator.yaml"], ["dtf-farm-coordinator.service"]),
    "worker": (["worker.yaml"], ["dtf-farm-worker.service"]),
    "page": (["page.yaml"], ["dtf-farm-page.service"]),
    "backup": (["coordinator.yaml"], ["dtf-farm-backup.service", "dtf-farm-backup.timer"]),
}
"""What a machine may be -> settings and units that it gets; the last of these is started."""


def render_systemd(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    coordinator, page = (commands.coordinator(f"{PLACES.config}/{name}.yaml") for name in ("coordinator", "page"))
    worker = commands.worker(f"{PLACES.config}/worker.yaml")
    backup = commands.backup(f"{PLACES.config}/coordinator.yaml", BACKUPS)
    over = {"server": {"port": PAGE_PORT, "workers_port": None, "dashboard_port": None}}
    units = _units(wanted.deployment.user, coordinator, page, worker) | _backup_units(wanted.deployment.user, backup)
    return [
        settings_file("coordinator.yaml", coordinator_sections(wanted, PLACES), coordinator),
        settings_file("page.yaml", coordinator_sections(wanted, PLACES, over=over), page),
        settings_file("worker.yaml", worker_sections(wanted, PLACES), worker),
        *(RenderedFile(name=name, text=text) for name, text in units.items()),
        RenderedFile(
            name="install.sh",
            executable=True,
            text=render(
                "install.sh.j2",
                package=wanted.deployment.package,
                user=wanted.deployment.user,
                prefix=PREFIX,
                config=PLACES.config,
                secrets=PLACES.secrets,
                backups=BACKUPS,
                roles=ROLES,
                lines=[one.line(PROGRAM) for one in (coordinator, page, worker, backup)],
            ),
        ),
    ]


def _units(user: str, coordinator: FarmCommand, page: FarmCommand, worker: FarmCommand) -> dict[str, str]:
    common: Section = [("StateDirectory", "dtf-farm"), ("StateDirectoryMode", "0700"), ("LimitNOFILE", "65536")]
    serving: Section = [*common, ("TimeoutStopSec", "30"), *HARDENED, *CLOSED]
    working: Section = [
        *common,
        ("Delegate", "yes"),  # limits of memory for its tasks
        ("KillMode", "process"),  # tasks outlive a worker that is started anew
        ("TimeoutStopSec", str(DRAINING)),
        ("ProtectSystem", "full"),
        *HARDENED,
    ]
    named: Section = [("Environment", "COORDINATOR_ID=page-%H")]
    return {
        "dtf-farm-coordinator.service": _service("coordinator", coordinator, user, serving),
        "dtf-farm-page.service": _service("coordinator that people open", page, user, [*named, *serving]),
        "dtf-farm-worker.service": _service("worker", worker, user, working),
    }


def _backup_units(user: str, backup: FarmCommand) -> dict[str, str]:
    once: Section = [
        ("Type", "oneshot"),
        ("User", user),
        ("ExecStart", command_line(backup)),
        ("ReadWritePaths", BACKUPS),
        ("StateDirectory", "dtf-farm"),
        ("StateDirectoryMode", "0700"),
        *HARDENED,
        *CLOSED,
    ]
    nightly: Section = [("OnCalendar", "*-*-* 03:17:00"), ("RandomizedDelaySec", "15min"), ("Persistent", "true")]
    about: Section = [("Description", "Backup of the dtf farm"), ("After", "network-online.target")]
    return {
        "dtf-farm-backup.service": _unit(backup, {"Unit": about, "Service": once}),
        "dtf-farm-backup.timer": _unit(
            backup,
            {
                "Unit": [("Description", "Nightly backup of the dtf farm")],
                "Timer": nightly,
                "Install": [("WantedBy", "timers.target")],
            },
        ),
    }


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
