"""`windows`: PowerShell that installs, scheduled tasks as XML, batch files. Nothing here has run on Windows: the files are checked
by their format alone.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from subprocess import list2cmdline

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

ROOT = "C:\\ProgramData\\dtf-farm"
PLACES = Places(config=f"{ROOT}\\config", secrets=f"{ROOT}\\secrets", state=f"{ROOT}\\state", separator="\\")
PROGRAM = f"{ROOT}\\venv\\Scripts\\dtf.exe"
NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"
LOCAL_SERVICE = "S-1-5-19"


def render_windows(wanted: Wanted) -> list[RenderedFile]:
    """Return the files."""
    roles = {
        "coordinator": commands.coordinator(PLACES(PLACES.config, "coordinator.yaml")),
        "worker": commands.worker(PLACES(PLACES.config, "worker.yaml")),
    }
    sections = {"coordinator": coordinator_sections(wanted, PLACES), "worker": worker_sections(wanted, PLACES)}
    files = [settings_file(f"{role}.yaml", sections[role], one, windows=True) for role, one in roles.items()]
    for role, command in roles.items():
        line = list2cmdline(["dtf", *command.words])
        files.append(RenderedFile(name=f"dtf-farm-{role}.xml", text=_scheduled(command)))
        batch = render("start.cmd.j2", role=role, root=ROOT, program=PROGRAM, words=command.words, line=line)
        files.append(RenderedFile(name=f"start-{role}.cmd", text=batch, windows=True))
    lines = [list2cmdline(["dtf", *command.words]) for command in roles.values()]
    install = render("install.ps1.j2", root=ROOT, package=wanted.deployment.package, roles=list(roles), lines=lines)
    return [*files, RenderedFile(name="install.ps1", text=install, windows=True)]


def _scheduled(command: FarmCommand) -> str:
    """A task that starts with the machine, again and again, for ever."""
    task = _Element("Task", version="1.2", xmlns=NAMESPACE)
    about = task.child("RegistrationInfo")
    about.child("Description", f"Runs: {list2cmdline(['dtf', *command.words])}")
    task.child("Triggers").child("BootTrigger").child("Enabled", "true")
    principal = task.child("Principals").child("Principal", id="Author")
    principal.child("UserId", LOCAL_SERVICE)
    principal.child("RunLevel", "LeastPrivilege")
    settings = task.child("Settings")
    settings.child("MultipleInstancesPolicy", "IgnoreNew")
    settings.child("DisallowStartIfOnBatteries", "false")
    settings.child("StopIfGoingOnBatteries", "false")
    settings.child("StartWhenAvailable", "true")
    settings.child("Enabled", "true")
    settings.child("ExecutionTimeLimit", "PT0S")
    again = settings.child("RestartOnFailure")
    again.child("Interval", "PT1M")
    again.child("Count", "255")
    run = task.child("Actions", Context="Author").child("Exec")
    run.child("Command", PROGRAM)
    run.child("Arguments", list2cmdline(command.words))
    run.child("WorkingDirectory", PLACES.state)
    return task.text()


class _Element:
    """An element, and those in it."""

    def __init__(self, name: str, **attributes: str) -> None:
        self._element = ET.Element(name, attributes)

    def child(self, name: str, text: str | None = None, **attributes: str) -> _Element:
        """Add one."""
        child = _Element(name, **attributes)
        child._element.text = text
        self._element.append(child._element)
        return child

    def text(self) -> str:
        """Return the document."""
        ET.indent(self._element)
        return ET.tostring(self._element, encoding="unicode", xml_declaration=False) + "\n"
