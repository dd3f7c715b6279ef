"""`Job`: what a pipeline runs, whatever the forge, and the shell lines that all of them share.

Rules that this file guards:
- A secret is read from a variable, and written to a file of its owner's only; it stands in no command line and in no file of ours.
- What a person gives stands in a script as a quoted word, or is that person's own command.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from dtf_lightning import __version__
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.deploy.files import FarmCommand

TOKEN, CA = "DTF_FARM_TOKEN", "DTF_FARM_CA_PEM"
"""Secrets of the forge."""
FOLDER = "dtf-farm"
"""Of results and reports, in the repository."""
RESULTS = f"{FOLDER}/junit.xml"
TESTS = FarmCommand(words=("farm", "run", "--", "python3", "-m", "pytest"))
OVER_THE_FARM = f"python3 -m pytest --farm --junitxml={RESULTS}"
"""What a job runs that was told no command."""
START = FarmCommand(words=("farm", "up", "--detach"))
END = FarmCommand(words=("farm", "down"))
WRITE_TOKEN = (
    "umask 077",
    f'printf "%s\\n" "${TOKEN}" > "$DTF_FARM_TOKEN_FILE"',
    f'printf "%s\\n" "${CA}" > "$DTF_FARM_CA"',
    "umask 022",
)
TOLD = ("status", "comment", "check-run")
"""What a forge can be told by its API."""
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@=+,\[\]-]{0,299}")
_URL = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+(,https?://[A-Za-z0-9.\[\]:_-]+)*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/-]{0,60}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./*-]*")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job. Raises `SettingsError` for what cannot stand in a pipeline."""

    name: str = "farm tests"
    command: str = OVER_THE_FARM
    """A line of bash."""
    setup: tuple[str, ...] = ()
    """Lines before it."""
    url: str = ""
    """Of the farm that the job joins; "": it starts one on its runner."""
    package: str = f"dtf-lightning[farm]=={__version__}"
    image: str = "docker.io/library/python:3.11-slim-bookworm"
    results: tuple[str, ...] = (RESULTS,)
    """Files with what came out."""
    tell: tuple[str, ...] = ()
    branch: str = "main"
    minutes: int = 120

    def __post_init__(self) -> None:
        for what, pattern, values in (
            ("the name", _NAME, [self.name]),
            ("the package", _PLAIN, [self.package]),
            ("the image", _PLAIN, [self.image]),
            ("the branch", _PLAIN, [self.branch]),
            ("the farm's address", _URL, [self.url] if self.url else []),
            ("a file of results", _FILE, self.results),
        ):
            for value in values:
                if not pattern.fullmatch(value) or ".." in value:
                    raise SettingsError(
                        f"{what} is {value!r}, which cannot stand in a pipeline: expected {pattern.pattern}"
                    )
        if unknown := sorted(set(self.tell) - set(TOLD)):
            raise SettingsError(f"--tell {unknown[0]}: expected some of {', '.join(TOLD)}")
        if not self.command.strip():
            raise SettingsError("there is no command to run")
        if self.minutes < 1:
            raise SettingsError(f"--minutes {self.minutes}: expected 1 or more")

    @property
    def install(self) -> str:
        """The line that installs `dtf`."""
        return shlex.join(["python3", "-m", "pip", "install", self.package])

    def report(self, ended: str) -> str:
        """Return the line that reports. `ended`: how the command ended, as a shell writes it."""
        words = ["farm", "ci", "report", "--name", self.name, "--output", FOLDER]
        if self.tell:
            words += ["--tell", ",".join(self.tell)]
        return f"dtf {shlex.join(words)} --ended {ended} {shlex.join(self.results)}".strip()
