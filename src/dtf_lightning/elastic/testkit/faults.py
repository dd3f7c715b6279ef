"""`FaultInjector` makes faults happen that are given as data: what, to which worker, at which place and step. Public.

    injector = FaultInjector([Fault(at="backward", step=8, rank=0)])
    trainer = Trainer(callbacks=[ElasticCallback(), injector])
    trainer.fit(model, DataLoader(injector.watch(dataset), ...))

All workers get the same list, because all nodes run the same script: `rank` and `generation` select the workers that a
fault concerns.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset, get_worker_info

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.lightning.host.names import Callback, Logger

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch import nn

LAG = 0.3
"""Seconds by which a lagging worker's collective fails later than that of its peers succeeds."""
HOLD_TIMEOUT = 600.0
"""Seconds after which a held worker fails; longer than any test holds one."""
HOLD_POLL = 0.01


class Phase(Enum):
    """Name a place in training. All but the last five are places in the loops, reached after `Fault.step` steps."""

    TRAIN_START = "train_start"
    FORWARD = "forward"  # within forward, before the first layer with weights
    BACKWARD = "backward"  # within backward, before the last gradient: the peers wait in its all-reduce
    AFTER_BACKWARD = "after_backward"  # gradients are reduced, the last look before the step is still to come
    BEFORE_OPTIMIZER_STEP = "before_optimizer_step"  # gradients are reduced, weights not changed
    AFTER_OPTIMIZER_STEP = "after_optimizer_step"  # weights are changed, the step is not counted yet
    BATCH_END = "batch_end"
    LOGGING = "logging"  # needs `FaultInjector.logger`
    VALIDATION = "validation"  # before a batch of a validation, except in the sanity check
    CHECKPOINT_SAVE = "checkpoint_save"  # before the file is written; also when the state is packed for a joiner, in the generation before it
    EPOCH_END = "epoch_end"
    TRAIN_END = "train_end"
    EVALUATION = "evaluation"  # in trainer.test, validate or predict, before the second batch
    DATA_LOADING = "data_loading"  # at the `step`-th sample that the process, or its DataLoader worker, reads
    DATA_WORKER = "data_worker"  # likewise, but the fault happens only to the DataLoader worker
    SETUP = "setup"  # before the first generation
    FORMING = "forming"  # the generation is assigned, its process group is not formed
    RECEIVING = "receiving"  # the state has come from a peer and is about to be loaded


class Action(Enum):
    """Name what happens to the process."""

    KILL = "kill"  # kill -9
    FREEZE = "freeze"  # SIGSTOP
    LEAVE = "leave"  # SIGTERM
    RAISE = "raise"  # `FaultInjected`, as the user's own error
    FAIL = "fail"  # its collective fails
    LAG = "lag"  # its collective fails, long after its peers' has succeeded
    HOLD = "hold"  # it makes the file `held_mark` and waits until the file `Fault.until` exists


class FaultInjected(Exception):
    """A fault raises this in place of an error of the user's code."""


def held_mark(until: str | Path, rank: int) -> Path:
    """Return the file that a worker of this rank makes when a fault begins to hold it."""
    return Path(f"{until}.held-{rank}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Describe one fault. It happens at most once in a process."""

    at: Phase | str
    step: int | None = None
    """Number of committed optimizer steps (of samples read, for the two data phases); `None` for any."""
    rank: int | None = None
    """Rank in the current generation; `None` for all."""
    generation: int | None = 1
    """Number of the generation; `None` for any. Not compared before the first generation."""
    action: Action | str = Action.KILL
    until: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", Phase(self.at))
        object.__setattr__(self, "action", Action(self.action))


class FaultInjector(Callback):
    """Make faults happen. Put it anywhere among the callbacks."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._faults = list(faults)
        self._trainer: pl.Trainer | None = None
        self._owner = os.getpid()
        self._num_read = 0
        self._rank_of_training: int | None = None
        """Rank at the end of training; `None` before. A survivor may have another one afterwards."""

    def watch(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """Return the data set with the faults that concern its reading. Needs forked DataLoader workers."""
        return _WatchedDataset(dataset, self._sample_read)

    def logger(self) -> Logger:
        """Return a logger that keeps nothing and has the faults that concern logging."""
        return _FaultLogger(lambda: self._meet(Phase.LOGGING))

    # --- meeting a fault ---------------------------------------------------------------------------------------------

    def _meet(self, phase: Phase, step: int | None = None) -> None:
        for fault in list(self._faults):
            if fault.at is phase and self._concerns_us(fault, step):
                self._faults.remove(fault)
                self._act(fault)

    def _concerns_us(self, fault: Fault, step: int | None) -> bool:
        trainer = self._trainer
        if trainer is None:
            return False
        run = getattr(trainer.strategy, "run", None)
        generation = run.world.generation.number if run is not None else 1
        rank = trainer.global_rank if self._rank_of_training is None else self._rank_of_training
        return (
            fault.step in (None, trainer.global_step if step is None else step)
            and fault.rank in (None, rank)
            and (fault.generation in (None, generation) or generation == 0)
        )

    def _act(self, fault: Fault) -> None:
        victim = os.getpid()
        if fault.at is Phase.DATA_LOADING:
            victim = self._owner
        match fault.action:
            case Action.KILL:
                os.kill(victim, signal.SIGKILL)
            case Action.FREEZE:
                os.kill(victim, signal.SIGSTOP)
            case Action.LEAVE:
                os.kill(victim, signal.SIGTERM)
            case Action.RAISE:
                raise FaultInjected(f"{fault}")
            case Action.FAIL | Action.LAG:
                if fault.action is Action.LAG:
                    time.sleep(LAG)
                raise RuntimeError(f"Connection closed by peer (injected: {fault})")
            case Action.HOLD:
                self._hold(Path(fault.until))
            case _:
                raise AssertionError(fault)

    def _hold(self, until: Path) -> None:
        trainer = self._trainer
        assert trainer is not None
        held_mark(until, trainer.global_rank).touch()
        poll_until(until.exists, HOLD_TIMEOUT, f"the file {until}, which is to let go", interval=HOLD_POLL)

    def _sample_read(self) -> None:
        self._num_read += 1
        self._meet(Phase.DATA_LOADING, self._num_read)
        if get_worker_info() is not None:
            self._meet(Phase.DATA_WORKER, self._num_read)

    # --- Lightning's hooks -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._trainer = trainer
        self._meet(Phase.SETUP)
        run = getattr(trainer.strategy, "run", None)
        if run is not None:
            form = run.membership.group.form

            def form_or_fail(**kwargs: Any) -> None:
                self._meet(Phase.FORMING)
                form(**kwargs)

            run.membership.group.form = form_or_fail

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        first = next(module for module in pl_module.modules() if any(True for _ in module.parameters(recurse=False)))
        first.register_forward_pre_hook(lambda *_: self._in_forward(trainer, pl_module))

    def _in_forward(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        if trainer.training and pl_module.training:
            self._meet(Phase.FORWARD)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        for optimizer in trainer.optimizers:  # not earlier: a run that begins may replace the optimizers of set-up
            optimizer.register_step_post_hook(lambda *_: self._meet(Phase.AFTER_OPTIMIZER_STEP))
        self._meet(Phase.TRAIN_START)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any) -> None:  # noqa: ARG002
        if any(fault.at is Phase.BACKWARD for fault in self._faults):
            first = next(parameter for parameter in pl_module.parameters() if parameter.requires_grad)

            def in_backward(_: Any) -> None:
                handle.remove()
                self._meet(Phase.BACKWARD)

            handle = first.register_hook(in_backward)  # type: ignore[no-untyped-call]

    def on_after_backward(self, *_: Any) -> None:
        self._meet(Phase.AFTER_BACKWARD)

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        optimizer: Any,  # noqa: ARG002
    ) -> None:
        self._meet(Phase.BEFORE_OPTIMIZER_STEP)

    def on_train_batch_end(self, *_: Any) -> None:
        self._meet(Phase.BATCH_END)

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":
            self._in_evaluation(trainer, *_)
        elif not trainer.sanity_checking:
            self._meet(Phase.VALIDATION)

    def on_test_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._in_evaluation(trainer, *arguments)

    def on_predict_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        self._in_evaluation(trainer, *arguments)

    def _in_evaluation(self, _: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, *__: Any) -> None:  # noqa: ARG002
        if batch_idx == 1:
            self._meet(Phase.EVALUATION)

    def on_save_checkpoint(self, *_: Any) -> None:
        self._meet(Phase.CHECKPOINT_SAVE)

    def on_load_checkpoint(self, *_: Any) -> None:
        self._meet(Phase.RECEIVING)

    def on_train_epoch_end(self, *_: Any) -> None:
        self._meet(Phase.EPOCH_END)

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._rank_of_training = trainer.global_rank
        self._meet(Phase.TRAIN_END)


class _WatchedDataset(Dataset[Any]):
    def __init__(self, dataset: Any, sample_read: Callable[[], None]) -> None:
        self._dataset = dataset
        self._sample_read = sample_read

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        self._sample_read()
        return self._dataset[index]


class _FaultLogger(Logger):
    def __init__(self, log: Callable[[], None]) -> None:
        super().__init__()
        self._log = log

    @property
    def name(self) -> str:
        return "faults"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # noqa: ARG002
        self._log()

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: this logger keeps nothing."""
