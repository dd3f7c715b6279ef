"""Live mode and restart mode differ in these two policies; `live.py` and `restart/` implement them.

`Membership` says which workers are in the run with this one, and how it learns of changes. `StateSource` says whose
state all continue from. Everything else of a worker's run is the same code for both modes: `worker_run.py`.
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
from dtf_lightning.elastic.lightning.rewind.rewind import Rewind
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.start_world import StartWorld
from dtf_lightning.elastic.lightning.run.world import Resumption, World
from dtf_lightning.elastic.link.messages import Welcome
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.events.registry import Event

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Verdict(Enum):
    """Classify an exception that came up through the training loops."""

    RESCALE = "the end of a generation: unwind, and go on in the next one"
    OWN = "this process's own failure: the others are told, and it ends"
    GOODBYE = "the end that was announced already"


class Membership(Protocol):
    """Connect a worker with the other members of its run."""

    group: GenerationGroup
    keeps_processes: bool
    """Whether workers survive rescales, so that rank 0's tasks pass from one process to another."""

    @property
    def welcome(self) -> Welcome:
        """Name, rank and timeouts of this worker; in live mode its agent gave them, and the rank is provisional."""

    def attach(self, settings: RunSettings, fingerprint: dict[str, str], run_dir: Path) -> Generation | None:
        """Return the generation if it is known as soon as the trainer is, otherwise `None`.

        Raises `SettingsError` if the members' settings differ.
        """

    def get_ready(self, trainer: pl.Trainer) -> None:
        """Prepare for the first generation; called once, when set-up is over."""

    def assignment(self, fingerprint: dict[str, str], parameters: tuple[str, ...], run_dir: Path) -> World:
        """Return this worker's place in the next generation, once it is known; ends the former process group.

        Raises:
            WorkerLeft: the run ended before this worker was needed, or this worker was already asked to leave.
            RunAborted, RunRefused, SettingsError: the run or the agent does not take this worker.
        """

    def store_prefix(self, generation: Generation) -> str:
        """Return a key prefix that no other generation uses on the store where the members meet."""

    def active(self, step: int) -> None:
        """Announce that the generation is formed and trains from optimizer step `step` on."""

    def at_boundary(self, step: int) -> bool:
        """Tell whether this worker stops at this optimizer-step boundary. Raises like `check`."""

    def begin_batch(self) -> None:
        """Take note that a batch begins which is not the first of its step. Raises like `check`."""

    def check(self) -> None:
        """Check for bad news between boundaries. Raises `GenerationBroken` if a failure was announced, or `RunAborted`."""

    def before_validation_batch(self, world: World, *, sanity_checking: bool) -> None:
        """Stop a validation that may take longer than an agent waits. May raise `StopForRescale` or `WorkerLeft`."""

    def verdict(self, error: BaseException) -> Verdict:
        """Classify the exception. Raises `RunAborted` in place of what the aborted collectives have raised."""

    def failed(self, error: BaseException) -> None:
        """Tell the other workers that this process ends by a failure of its own."""

    def break_off(self) -> None:
        """Release peers that wait for this worker; called when it begins to unwind."""

    def drop_group(self, *, planned: bool) -> None:
        """Destroy the generation's process group, which is not in use any more. `planned`: no member failed."""

    def leave_reason(self) -> str | None:
        """Return why this worker leaves after unwinding; `None` if it continues in the next generation."""

    def leave(self, reason: str, step: int) -> None:
        """Leave the run after `step` optimizer steps.

        Raises `WorkerLeft`, or `RuntimeError` where this worker must count as failed.
        """

    def leaving(self, reason: str) -> None:
        """Ask this worker to leave at the next step boundary. Safe in a signal handler."""

    def loop_ends(self, step: int, reason: str) -> None:
        """Tell the others that this worker leaves the training loop after `step` optimizer steps, and why."""

    def finished(self, step: int) -> None:
        """Wait until all members have completed the training. Raises if one of them died before it."""

    def go_on_alone(self, world: World, what: str, error: Exception) -> None:
        """Form a process group of this worker alone: a peer is gone after the end of training, in the evaluation `what`.

        Raises `PeerError` if other peers are left, or if the workers are to be started anew.
        """

    def signals(self) -> AbstractContextManager[None]:
        """Make the process leave at a step boundary when a signal inside this context asks it to end."""

    def send(self, event: Event) -> None:
        """Send an important event to the programs that watch the run."""

    def close(self) -> None:
        """Close the connections and the process group. Idempotent."""


@dataclass(frozen=True, kw_only=True)
class StateParts:
    """Hold the parts that a worker's training state is read from and written to."""

    settings: RunSettings
    run_dir: Path
    """The folder of the run's events, ledgers, and snapshots on the disk."""
    trainer: Any
    progress: TrainingProgress
    rewind: Rewind
    start_world: StartWorld
    run_log: RunLog


class StateSource(Protocol):
    """Give all members of a generation the same state, and keep this worker's state for others."""

    def attach(self, parts: StateParts) -> None:
        """Bind to the parts of the training state, once the trainer that will fit is known."""

    def pack(self) -> None:
        """Make ready what others may need of this worker's state, at a boundary where a planned rescale stops.

        All members are there and call it together, while their process group is intact: users' hooks run here. A hook
        that fails concerns those who would have received the state, in `share`.
        """

    def share(self, world: World) -> Resumption:
        """Give all members the newest state that any of them has. A collective: every member calls it.

        Raises `StateRefused` on a joiner that cannot be given the state, and `GenerationBroken` on the other members, who
        form the next generation without it.
        """

    def at_boundary(self, step: int) -> None:
        """Take note that this worker continues after a boundary between two optimizer steps."""

    def before_weights_change(self) -> None:
        """Complete copies of the state: weights and optimizer state may change after this returns."""

    def leave_behind(self, reason: str) -> None:
        """Write what others may need of this worker's state, after it has unwound and before it leaves."""

    def finished(self) -> None:
        """Take note that training is over for all members. May raise `WorkerLeft`, if this worker was asked to stop."""

    def close(self) -> None:
        """Release files and threads. Idempotent."""
