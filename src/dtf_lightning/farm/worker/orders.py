"""What a farm worker is asked to run, and what it tells about that.

Times are seconds since the epoch (UTC) by the worker's clock; sizes are bytes unless their name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.attempts import AttemptOutcome


@dataclass(frozen=True, kw_only=True)
class AttemptOrder:
    """One attempt that a worker is to run. `(task, revision)` is its identity.

    Raises `SettingsError` for what no process can be started with.
    """

    task: str
    number: int
    """Of the attempt at its task; starts at 1."""
    revision: int
    """Revision of the attempt in the farm's record."""
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those of the worker."""
    timeout: float | None = None
    """Seconds."""
    amounts: Mapping[str, float] = field(default_factory=dict)
    """What it was given: `cpu` (cores), `memory` (MiB), `gpu` and others (devices)."""
    folder: str = ""
    """Working folder; "": a workspace of its own. A relative path lies in that workspace."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Variables whose values must not appear in the log."""
    secret_names: tuple[str, ...] = ()
    """Of the secrets that its task names: kept on disk, where their values are not."""
    token: str = ""
    """With which its command may ask the farm; "": it has none."""
    artifacts: tuple[str, ...] = ()
    """Patterns of files to keep, relative to the working folder; `**` stands for folders."""
    grace: float = 10.0
    """Seconds between SIGTERM and SIGKILL."""
    rank: int = 0
    """Of a gang's attempt: which of its members this is."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Variables of the farm, which come before all others."""
    stdin: bool = False
    """Whether `Executor.feed` will give it a standard input; without, it reads the end of the file at once."""
    returns: bool = False
    """Whether it is a call of a function, whose value is told (`farm.calls.returned`)."""

    def __post_init__(self) -> None:
        if not self.task or not self.command or not self.command[0]:
            raise SettingsError("an attempt needs the id of its task and a command with a program")
        names = [*self.environment, *self.secrets]
        texts = [*self.command, *names, *self.environment.values(), *self.secrets.values(), self.folder]
        if any("\0" in text for text in texts) or any("=" in name or not name for name in names):
            raise SettingsError(
                f"the order of task {self.task} has a NUL character in its command, folder or variables, or a variable "
                "without a name or with = in it: no process can be started with these"
            )
        if (self.timeout is not None and not self.timeout > 0) or not self.grace >= 0:
            raise SettingsError(
                f"timeout {self.timeout} and grace {self.grace} of task {self.task}: the timeout must be more than "
                "0 seconds or None, the grace at least 0 seconds"
            )
        if not all(amount >= 0 for amount in self.amounts.values()):
            raise SettingsError(f"amounts of task {self.task} must be at least 0, got {dict(self.amounts)}")

    def kept_on_disk(self) -> dict[str, Any]:
        """The order as a JSON object, without the variables' values and the secrets, which stay in memory."""
        return {**vars(self), "amounts": dict(self.amounts), "environment": {}, "secrets": {}, "own": {}, "token": ""}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> AttemptOrder:
        """Raises `TypeError`, `KeyError` and `SettingsError` for what is no order. Fields of newer releases are ignored."""
        known = {part.name: body[part.name] for part in fields(cls) if part.name in body}
        return cls(**known | {name: tuple(known[name]) for name in ("command", "artifacts")})


@dataclass(frozen=True, kw_only=True)
class AttemptStarted:
    """Its process runs; told again by a worker that was started anew and has found it running."""

    task: str
    revision: int
    at: float
    confinement: str
    """What holds it to its memory limit: `cgroup v2`, `cgroup v1` or `rlimit`."""


@dataclass(frozen=True, kw_only=True)
class AttemptOutput:
    """A piece of its log, standard output and error as they came, with secrets masked."""

    task: str
    revision: int
    offset: int
    """Of the piece's first byte in the log."""
    data: bytes


@dataclass(frozen=True, kw_only=True)
class AttemptEnded:
    """None of its processes is left, and its devices are free."""

    task: str
    revision: int
    number: int
    outcome: AttemptOutcome


Told = AttemptStarted | AttemptOutput | AttemptEnded
