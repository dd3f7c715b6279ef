"""The two policies in which live mode and restart mode differ; `live.py` and `restart/` implement them.

`Membership`: who is in the run with this worker, and how it hears of changes. `StateSource`: whose state all continue
from. Everything else of a worker's run is one code for both: `worker_run.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dtf_lightning.elastic.collectives.process_group import GenerationGroup
from dtf_lightning.elastic.lightning.reporting.run_log import RunLog
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.rewind.undo import Undo
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.start_world import StartWorld
from dtf_lightning.elastic.lightning.run.world import Resumption, World
from dtf_lightning.elastic.link.messages import Welcome
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.events.registry import Event

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Verdict(Enum):
    """What an exception that came up through the training loops is."""

    RESCALE = "the end of a generation: unwind, and go on in the next one"
    OWN = "this process's own failure: the others are told, and it ends"
    GOODBYE = "the end that was announced already"


class Membership(Protocol):
    """How a worker belongs to its run."""

    group: GenerationGroup
    keeps_processes: bool
    """Workers live through rescales: rank 0's part passes from one process to another."""

    @property
    def welcome(self) -> Welcome:
        """What this worker was told about itself."""

    def attach(self, settings: RunSettings, fingerprint: dict[str, str], run_dir: Path) -> Generation | None:
        """The trainer that will fit is known. The generation, if it is settled already.

        Raises `SettingsError` when the members' settings differ.
        """

    def get_ready(self, trainer: pl.Trainer) -> None:
        """Once, when set-up is over and before the first generation."""

    def assignment(self, fingerprint: dict[str, str], parameters: tuple[str, ...], run_dir: Path) -> World:
        """Wait for the next generation and this worker's place in it; the former group is gone afterwards.

        Raises:
            WorkerLeft: the run ended before this worker was needed, or it is to leave already.
            RunAborted, RunRefused, SettingsError: the run's or the agent's last word.
        """

    def store_prefix(self, generation: Generation) -> str:
        """Unique for the generation on the store that its members meet on."""

    def active(self, step: int) -> None:
        """Say that the generation is formed and trains."""

    def at_boundary(self, step: int) -> bool:
        """At an optimizer-step boundary: whether this worker stops here. Raises like `check`."""

    def check(self) -> None:
        """Between boundaries. Raises `GenerationBroken` when a failure was announced, `RunAborted`."""

    def before_validation_batch(self, world: World, *, sanity_checking: bool) -> None:
        """A validation may take longer than an agent waits. May raise `StopForRescale`, `WorkerLeft`."""

    def verdict(self, error: BaseException) -> Verdict:
        """What the exception is. Raises `RunAborted` in the place of what the end of the collectives has raised."""

    def failed(self, error: str) -> None:
        """Tell the others that this process ends by a failure of its own."""

    def break_off(self) -> None:
        """Unwinding begins."""

    def drop_group(self, *, planned: bool) -> None:
        """Nothing uses the generation's process group any more."""

    def leave_reason(self) -> str | None:
        """Why this worker leaves now that it has unwound; `None`: it goes on to the next generation."""

    def leave(self, reason: str) -> None:
        """Say goodbye. Raises `WorkerLeft`; `RuntimeError` where this worker must be taken for a failed one."""

    def leaving(self, reason: str) -> None:
        """Leave at the next boundary. Safe in a signal handler."""

    def finished(self, step: int) -> None:
        """Come to the end of training together with all members. Raises when one of them died before it."""

    def signals(self) -> AbstractContextManager[None]:
        """Inside, signals that ask this process to end make it leave at a step boundary."""

    def send(self, event: Event) -> None:
        """Tell an important event to those who watch the run."""

    def close(self) -> None:
        """Hang up and let go of the process group. Idempotent."""


@dataclass(frozen=True, kw_only=True)
class StateParts:
    """What a worker's training state consists of, and where it goes when it is received."""

    settings: RunSettings
    trainer: Any
    progress: TrainingProgress
    undo: Undo
    start_world: StartWorld
    run_log: RunLog


class StateSource(Protocol):
    """Whose state the members of a generation go on from, and what this worker leaves for others."""

    def attach(self, parts: StateParts) -> None:
        """The trainer that will fit is known."""

    def share(self, world: World) -> Resumption:
        """Leave all members with the newest state that any of them can give. A collective: every member calls it."""

    def at_boundary(self, step: int) -> None:
        """Between two optimizer steps, this worker goes on."""

    def before_weights_change(self) -> None:
        """Weights and optimizer state may change after this."""

    def leave_behind(self, reason: str) -> None:
        """This worker unwound and leaves: what others may need of its state is written when this returns."""

    def finished(self) -> None:
        """Training is over for all."""

    def close(self) -> None:
        """Idempotent."""
