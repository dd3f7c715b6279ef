"""`ElasticRun` lists all that Lightning's loops, the strategy and the callbacks may use of a worker's run."""

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
from dtf_lightning.elastic.lightning.rewind.rewind import Rewind
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.world import World

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class ElasticRun(Protocol):
    """Describe a worker's run, which `worker_run.WorkerRun` implements. Methods stand in the order of their calls."""

    trainer: Any
    """The trainer that fits; `None` before `attach`."""
    settings: RunSettings
    environment: ElasticEnvironment
    world: World
    over: bool
    """Whether all members have come to the end of training: a member's death is no failure any more."""
    progress: TrainingProgress
    batches: RunningBatches
    gradients: Gradients
    rewind: Rewind

    @property
    def joiner(self) -> bool:
        """Whether the run trained before this worker was started."""

    @property
    def recorder(self) -> RunRecorder:
        """The recorder of this worker's events and of its account of time."""

    def attach(self, trainer: Any) -> None:
        """Bind to the trainer that will fit, before its set-up hooks. Raises `SettingsError`."""

    def leaving(self, reason: str) -> None:
        """Ask this worker to leave at the next step boundary. Safe in a signal handler."""

    def loaded(self, position: dict[str, Any] | None) -> None:
        """Take note of the position in a checkpoint, or in a peer's state, that Lightning has loaded."""

    def signals(self) -> AbstractContextManager[None]:
        """Make the process leave at a step boundary when a signal inside this context asks it to end."""

    def enter(self) -> None:
        """Wait for the next generation, form it, and hold the same state as all its members."""

    def begin(self) -> None:
        """Take note that the generation's training loader is made: a new run begins in this world."""

    def bind_loader(self, loader: DataLoader[Any] | StreamLoader, *, first: bool = True) -> None:
        """Set a training loader's rank, world size and position in the epoch."""

    def restore_random_state(self) -> None:
        """Undo what going back into the loops did to the random number generator."""

    def before_batch(self) -> None:
        """Prepare for the next batch. Raises `StopForRescale` at the agreed boundary, `GenerationBroken`, `RunAborted`."""

    def batch_drawn(self) -> None:
        """Take note that the batch is loaded and its training step is about to run."""

    def before_validation_batch(self) -> None:
        """Prepare for the next batch of a validation or sanity check; may raise like `before_batch`, or `WorkerLeft`."""

    def loss_there(self) -> None:
        """Take note that the forward pass is done."""

    def optimizer_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that runs forward and backward, then a last check before the optimizer changes weights."""

    def after_batch(self) -> None:
        """Take note that a batch is done: its optimizer stepped, or it is part of an accumulation."""

    def batch_hooks(self, *, validates: bool) -> AbstractContextManager[None]:
        """Wrap what Lightning does at a batch's end, so that it can be done again after a rescale."""

    def epoch_hooks(self) -> AbstractContextManager[None]:
        """Wrap what Lightning does at an epoch's end, so that it can be done again after a rescale."""

    def epoch_begins(self) -> None:
        """Take note that the hooks of an epoch's start are about to run."""

    def first_hooks_done(self) -> None:
        """Take note that the hooks of an epoch's end are done up to the module's own; the others follow."""

    def heed_stop(self) -> None:
        """Stop with the first worker that stops, or tell the agent that this one does. May be a collective."""

    def collective(self) -> AbstractContextManager[None]:
        """Count the time inside the context as waiting for the other workers."""

    def should_rescale(self, error: BaseException) -> bool:
        """Tell whether this exception means a rescale; if not, a failure of this process is announced to the others."""

    def unwind(self, error: BaseException) -> None:
        """Bring this process to a clean position that can be resumed, without a process group."""

    def leave_if_asked(self) -> None:
        """Leave the run if this worker unwound to leave. Raises `WorkerLeft`."""

    def finish(self) -> None:
        """Complete the training together with all members."""

    def go_on_alone(self, what: str, error: Exception) -> None:
        """Become a world of one, because the only peer is gone after the end of training.

        Raises `PeerError` if other peers are left, or in restart mode, where all workers are started anew.
        """
