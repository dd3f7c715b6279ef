"""The narrow door: all that Lightning's loops, the strategy and the callbacks may see of a worker's run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from dtf_lightning.elastic.lightning.cluster_environment import ElasticEnvironment
from dtf_lightning.elastic.lightning.data.gradients import Gradients
from dtf_lightning.elastic.lightning.data.running_batches import RunningBatches
from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader
from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.world import World

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class ElasticRun(Protocol):
    """A worker's run, as `worker_run.WorkerRun` implements it. In the order in which its methods are called."""

    trainer: Any
    """The trainer that fits; `None` before."""
    settings: RunSettings
    environment: ElasticEnvironment
    world: World
    over: bool
    """Training came to its end with all members: whoever dies now is missed no more."""
    progress: TrainingProgress
    batches: RunningBatches
    gradients: Gradients

    @property
    def joiner(self) -> bool:
        """The run trained before this worker was started."""

    @property
    def recorder(self) -> RunRecorder:
        """Where this worker's events and its account of time are written."""

    def attach(self, trainer: Any) -> None:
        """Bind to the trainer that will fit; before its set-up hooks. Raises `SettingsError`."""

    def leaving(self, reason: str) -> None:
        """Leave at the next boundary. Safe in a signal handler."""

    def loaded(self, position: dict[str, Any] | None) -> None:
        """Lightning has loaded a checkpoint, or a peer's state, in which this was the position."""

    def signals(self) -> AbstractContextManager[None]:
        """Inside, signals that ask this process to end make it leave at a step boundary."""

    def enter(self) -> None:
        """Wait for the next generation, form it, and hold the same state as all its members."""

    def begin(self) -> None:
        """The training loader of the generation is made: a run that nobody has trained in begins in this world."""

    def bind_loader(self, loader: DataLoader[Any] | StreamLoader, *, first: bool = True) -> None:
        """Give a training loader its place in the world and in the epoch."""

    def restore_random_state(self) -> None:
        """Going back into the loops drew no random number."""

    def before_batch(self) -> None:
        """Before each batch. Raises `StopForRescale` at the agreed boundary, `GenerationBroken`, `RunAborted`."""

    def batch_drawn(self) -> None:
        """The batch is there and its step is about to run."""

    def before_validation_batch(self) -> None:
        """Before each batch of a validation or sanity check; may raise like `before_batch`."""

    def loss_there(self) -> None:
        """Forward is done."""

    def optimizer_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Forward and backward, then a last look before the optimizer changes weights."""

    def after_batch(self) -> None:
        """The batch is committed: its optimizer stepped, or it is part of an accumulation."""

    def batch_hooks(self, *, validates: bool) -> AbstractContextManager[None]:
        """Around what Lightning does at a batch's end; it can be done again."""

    def epoch_hooks(self) -> AbstractContextManager[None]:
        """Around what Lightning does at an epoch's end; it can be done again."""

    def collective(self) -> AbstractContextManager[None]:
        """Inside, this worker waits for the others."""

    def should_rescale(self, error: BaseException) -> bool:
        """Whether this exception is a rescale; if not, it is this process's own end, and the others are told."""

    def unwind(self, error: BaseException) -> None:
        """Bring this process to a clean, resumable position without a process group."""

    def leave_if_asked(self) -> None:
        """Leave if the rescale was this worker's leaving. Raises `WorkerLeft`."""

    def finish(self) -> None:
        """Come to the end of training together with all members."""
