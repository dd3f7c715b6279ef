"""`ElasticCallback` is the one line that makes a training script elastic. Public: `dtf_lightning.ElasticCallback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtf_lightning.elastic.data.step_plans import BatchPolicy, BatchSettings, EpochTail
from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
from dtf_lightning.elastic.lightning.checks.compatibility import (
    refuse_callbacks,
    refuse_finders,
    refuse_module,
    refuse_trainer,
)
from dtf_lightning.elastic.lightning.data.evaluation import Evaluation, check_evaluation
from dtf_lightning.elastic.lightning.host.choice import refuse_another
from dtf_lightning.elastic.lightning.host.logs import forget_logged, is_validated
from dtf_lightning.elastic.lightning.host.names import (
    PACKAGE,
    Callback,
    DDPStrategy,
    SingleDeviceStrategy,
    rank_zero_info,
)
from dtf_lightning.elastic.lightning.host.trainer import (
    arguments_of_one_world,
    is_running,
    on_sigterm,
    replace_strategy,
    set_cluster_environment,
    starts_processes,
)
from dtf_lightning.elastic.lightning.loops import make_loops_elastic
from dtf_lightning.elastic.lightning.run.current import current_run
from dtf_lightning.elastic.lightning.run.interface import ElasticRun
from dtf_lightning.elastic.lightning.run.settings import RunSettings, Stop, check_stop
from dtf_lightning.elastic.lightning.strategy import ElasticDDPStrategy
from dtf_lightning.elastic.numerics.learning_rate import Rule
from dtf_lightning.elastic.snapshots.settings import SHARED_MEMORY, SnapshotSettings
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl

INERT = (
    "ElasticCallback does nothing here: torchrun has not started this process. To train elastically, start it "
    "with `torchrun --nnodes=1:4 --rdzv-backend=etcd --rdzv-endpoint=HOST:2379 --rdzv-id=RUN ...`."
)


class ElasticCallback(Callback):
    """Let workers join, leave and die while the trainer fits.

    Under `torchrun --rdzv-backend=etcd` the callback connects to the node's agent when it is constructed, and makes the
    trainer's strategy and loops elastic when `fit` begins (live mode). Under any other rendezvous of torchrun, and with
    `--rdzv-conf mode=restart`, torchelastic starts the workers anew on every change, and they resume from a snapshot in
    the nodes' memory (restart mode). In a process that torchrun has not started, the callback does nothing and says so
    once. It works with Lightning's default strategy, with `strategy="ddp"`, and with `strategy="elastic_ddp"`.

    Args:
        batch: how an optimizer step's samples follow the world size. `"per_rank"`: every rank has the loader's batch
            size, so that a step grows and shrinks with the world. `"global"`: a step has the same samples in every
            world, and each rank accumulates its share in micro-batches of at most the loader's batch size. Or a
            `dtf_lightning.BatchPolicy`.
        global_batch: samples per optimizer step with `"global"`; `None`: as many as a step of the first generation has.
        tail: what to do when the rest of an epoch does not divide by the world size: `"pad"` repeats at most
            world size - 1 samples (Lightning's way, the default of `"per_rank"`), `"drop"` leaves at most as many out,
            `"exact"` trains every sample once and weighs gradients by samples (the default of all other policies).
            The weights are right if `training_step` returns a mean over the batch's samples.
        virtual_ranks: number of logical ranks that define the training, each with the loader's batch size and random
            numbers of its own, whatever workers there are (at most as many): any history of worlds then gives the same
            bits on the same hardware with the same number of torch threads. `tail` is `"exact"` or `"drop"`;
            `seed=None` takes the sampler's seed.
        seed: makes random numbers (torch, numpy, Python, DataLoader workers) a function of (seed, epoch, step, rank), so
            that no rescale, retry or validation shifts them; `None`: random numbers continue from their current state.
        evaluation: how validation and test samples are divided. `"padded"`: Lightning's way, which evaluates up to
            world size - 1 samples twice; `"exact"`: each sample once, in any world.
        stop: what `trainer.should_stop` means when one worker sets it. `"together"`: all workers must set it at the same
            step, as `EarlyStopping` does; where they stop apart, the run ends with a message that names who stopped where.
            `"any"`: all stop where the first one does, for which they ask each other after every batch.
        ledger: write, before every step, which samples it draws, for audits (`dtf_lightning.audit_ledgers`).
        learning_rate: how the learning rate follows the world size: a rule's name (`"linear"`, `"sqrt"`, `"adam_sde"`,
            `"adascale"`, `"none"`), a function of (world size, reference world size), or an `AdaptiveLearningRate` with
            a ramp; `None`: the learning rate does not change with the world.
        verify_every_n_steps: optimizer steps between two comparisons of all workers' weights, optimizer, scheduler state and
            `requires_grad`, by checksums; a worker that differs from most of the others (from rank 0, at a tie) ends with an
            error that names the first difference, before another step is trained, and the others go on. Meant for like
            hardware: different processors may round differently. `None`: only after a joiner has received its state, which
            is always verified.
        snapshot_every_n_steps: optimizer steps between two snapshots into the node's memory while training goes on. In
            restart mode `None` writes a snapshot only when the workers stop, which covers everything but a node or a run
            that is killed without notice. In live mode peers hold the state, and snapshots are for the case that no
            member is left: `None` writes one only when the last member leaves.
        snapshot_dir: folder for snapshots, in memory; the run makes a subfolder of its own in it.
        snapshot_memory: bytes that snapshots may take there per node; what does not fit goes to `run_dir`. `None`: half
            of what is free at the start.
        run_dir: folder of the run's event logs and ledgers; `None` for `<default_root_dir>/dtf/<run id>`.

    Raises:
        SettingsError: a policy, tail or rule is unknown, or settings contradict each other; on `fit`: a strategy, module
            or loader cannot be made elastic.
        ProtocolError: the agent is of another version.
    """

    def __init__(
        self,
        *,
        batch: Literal["per_rank", "global"] | BatchPolicy = "per_rank",
        global_batch: int | None = None,
        tail: EpochTail | None = None,
        ledger: bool = False,
        run_dir: str | None = None,
        seed: int | None = None,
        virtual_ranks: int | None = None,
        evaluation: Evaluation = "padded",
        stop: Stop = "together",
        learning_rate: str | Rule | AdaptiveLearningRate | None = None,
        verify_every_n_steps: int | None = None,
        snapshot_every_n_steps: int | None = None,
        snapshot_dir: str | None = None,
        snapshot_memory: int | None = None,
    ) -> None:
        batches = BatchSettings(batch=batch, global_batch=global_batch, tail=tail, virtual_ranks=virtual_ranks)
        check_evaluation(evaluation)
        check_stop(stop)
        if batch == "global" and learning_rate not in (None, "none"):
            raise SettingsError(
                "ElasticCallback(batch='global', learning_rate=...): a step has the same samples in every world, so that "
                "its learning rate needs no rule. Remove learning_rate, or use batch='per_rank'."
            )
        if verify_every_n_steps is not None and verify_every_n_steps < 1:
            raise SettingsError(
                f"ElasticCallback(verify_every_n_steps={verify_every_n_steps}): expected a number of optimizer steps, at "
                "least 1, or None to verify only what a joiner has received"
            )
        if learning_rate is None or isinstance(learning_rate, AdaptiveLearningRate):
            self.learning_rate = learning_rate
        else:
            self.learning_rate = AdaptiveLearningRate(learning_rate)
        self.run: ElasticRun | None = current_run(
            RunSettings(
                batches=batches,
                ledger=ledger,
                run_dir=run_dir,
                seed=seed,
                evaluation=evaluation,
                verify_every_n_steps=verify_every_n_steps,
                stop=stop,
                snapshots=SnapshotSettings(
                    every_n_steps=snapshot_every_n_steps,
                    folder=Path(snapshot_dir) if snapshot_dir is not None else SHARED_MEMORY,
                    memory=snapshot_memory,
                ),
            )
        )
        """The run that this worker trains in; `None` where the callback does nothing."""
        self._said = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the trainer elastic before other callbacks and the module are set up."""
        if stage == "fit" and self.learning_rate is not None:
            _add_behind(self, self.learning_rate, trainer)
        if self.run is None:
            if not self._said:
                self._said = True
                rank_zero_info(INERT)
            return
        refuse_finders(trainer)
        if stage != "fit":
            if type(trainer.strategy) is DDPStrategy and not starts_processes(trainer.strategy):
                _make_strategy_elastic(trainer, self.run)  # or it would take the world from the script's arguments
            return
        make_elastic(trainer, pl_module, self.run)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ARG002  Lightning's signature
        if self.run is not None:
            self.run.recorder.batch_done(outputs)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self.run is not None:
            self.run.recorder.validation_begins()

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.run is not None and trainer.state.fn == "fit":
            self.run.before_validation_batch()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self.run is not None:
            self.run.recorder.validation_done(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Refuse a strategy that failed before set-up, because it starts processes itself."""
        if self.run is not None and self.run.trainer is None and isinstance(exception, ValueError):
            refuse_strategy(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch's data, so that a checkpoint resumes at the exact sample in any world."""
        if self.run is None:
            return {}
        return {
            "progress": self.run.progress.state_dict() | {"validated": is_validated(self.run.trainer)},
            "instance": self.run.world.generation.instance,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.run is not None:
            self.run.loaded(state_dict.get("progress"))


def _add_behind(callback: Callback, added: Callback, trainer: Any) -> None:
    """Insert a callback behind another one, while Lightning walks the list of callbacks: it is set up next."""
    others = [other for other in trainer.callbacks if isinstance(other, AdaptiveLearningRate) and other is not added]
    if others:
        raise SettingsError(
            "the trainer has an AdaptiveLearningRate besides ElasticCallback(learning_rate=...); the learning rate would "
            "be scaled twice. Remove one of them."
        )
    if added not in trainer.callbacks:
        trainer.callbacks.insert(trainer.callbacks.index(callback) + 1, added)


def make_elastic(trainer: pl.Trainer, pl_module: pl.LightningModule, run: ElasticRun) -> None:
    """Turn the trainer's strategy and loops into elastic ones. Raises `SettingsError` where that is impossible."""
    refuse_another(trainer, PACKAGE)
    _refuse_a_second_fit(run, trainer)
    refuse_module(pl_module)
    refuse_callbacks(trainer)
    refuse_trainer(trainer, run.settings.batches)
    _make_strategy_elastic(trainer, run)
    make_loops_elastic(trainer)
    forget_logged(trainer)
    run.attach(trainer)
    if run.joiner:
        trainer.num_sanity_val_steps = 0  # the run's first workers have done the sanity check
    # Lightning registers this after the set-up hooks; the loops install the real handlers when training begins.
    on_sigterm(trainer, lambda: run.leaving("SIGTERM"))


def _refuse_a_second_fit(run: ElasticRun, trainer: pl.Trainer) -> None:
    if run.trainer is not None and run.trainer is not trainer and is_running(run.trainer):
        raise SettingsError(
            "another Trainer of this process is in `fit` and trains in the elastic run; a second one inside of it would "
            "take the run away from it. Give the inner Trainer its callbacks without ElasticCallback."
        )
    if run.over or run.world.formed:
        raise SettingsError(
            "this process has trained in an elastic run already; a second `fit` in the same process would have to join "
            "the run again. Start it as a run of its own, with another --rdzv-id."
        )


def refuse_strategy(trainer: pl.Trainer) -> None:
    """Raise `SettingsError` for a strategy that cannot be made elastic."""
    strategy = trainer.strategy
    instead = 'Write Trainer(strategy="ddp", callbacks=[ElasticCallback()]).'
    if starts_processes(strategy):
        raise SettingsError(
            "Trainer(strategy=...) is one of ddp_spawn, ddp_fork and ddp_notebook, which start processes themselves; under "
            f"torchrun they are there already. {instead}"
        )
    if type(strategy) not in (DDPStrategy, SingleDeviceStrategy):
        raise SettingsError(
            f"Trainer(strategy={type(strategy).__name__}) cannot be made elastic: its process groups cannot be formed "
            f"anew in mid-run. {instead}"
        )
    _refuse_arguments(strategy)


def _refuse_arguments(strategy: Any) -> None:
    names = arguments_of_one_world(strategy) if isinstance(strategy, DDPStrategy) else []
    if names:
        raise SettingsError(
            f"DDPStrategy({', '.join(f'{name}=...' for name in names)}): an elastic run forms its process groups anew in "
            "mid-run, and all members hold the same weights; these keep a group, or what each rank has for itself, which no "
            "joiner can take over, or leave hooks and casts on the model, which wrapping it anew would double. Leave them "
            "out. A hook without a state stays: Trainer(strategy=DDPStrategy(ddp_comm_hook=fp16_compress_hook), "
            'callbacks=[ElasticCallback()]); for mixed_precision write Trainer(precision="bf16-mixed").'
        )


def _make_strategy_elastic(trainer: pl.Trainer, run: ElasticRun) -> None:
    strategy = trainer.strategy
    if isinstance(strategy, ElasticDDPStrategy):
        _refuse_arguments(strategy)
        return
    refuse_strategy(trainer)
    if type(strategy) is DDPStrategy:
        strategy.__class__ = ElasticDDPStrategy
        strategy.adopt(run)  # type: ignore[attr-defined]
    else:
        # Lightning chooses this strategy by default for one CPU or one GPU, however many workers torchrun started.
        elastic = ElasticDDPStrategy(
            accelerator=strategy.accelerator,
            parallel_devices=[strategy.root_device],
            checkpoint_io=strategy.checkpoint_io,
            precision_plugin=strategy.precision_plugin,
        )
        replace_strategy(trainer, elastic)
    set_cluster_environment(trainer, run.environment)
