"""`ElasticCallback`: the one line that makes a training script elastic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from dtf_lightning.errors import SettingsError
from dtf_lightning.lightning.loops import make_loops_elastic
from dtf_lightning.lightning.refusals import refuse_module
from dtf_lightning.lightning.session import ElasticSession, SessionSettings, current_session
from dtf_lightning.lightning.strategy import ElasticDDPStrategy
from dtf_lightning.training.sampler import TAILS, Tail

if TYPE_CHECKING:
    import lightning.pytorch as pl

INERT = (
    "ElasticCallback does nothing here: no agent of dtf-lightning started this process. To train elastically, start it "
    "with `torchrun --nnodes=1:4 --rdzv-backend=etcd --rdzv-endpoint=HOST:2379 --rdzv-id=RUN ...`."
)


class ElasticCallback(Callback):
    """Let workers join, leave and die while the trainer fits.

    Under `torchrun --rdzv-backend=etcd` it checks in with the node's agent when it is constructed and makes the
    trainer's strategy and loops elastic when `fit` begins. Started any other way it does nothing and says so once.
    Works with Lightning's default strategy, with `strategy="ddp"`, and with `strategy="elastic_ddp"`.

    Args:
        tail: what to do when the rest of an epoch does not divide by the world size: `"pad"` repeats at most
            world size - 1 samples (Lightning's way), `"drop"` leaves at most as many out.
        ledger: write, before every step, which samples it draws, for audits (`dtf_lightning.training.ledger.audit`).
        run_dir: folder of the run's event logs and ledgers; `None` for `<default_root_dir>/dtf/<run id>`.

    Raises:
        SettingsError: unknown tail; on `fit`: a strategy, module or loader that cannot be made elastic.
        ProtocolError: the agent is of another version.
    """

    def __init__(self, *, tail: Tail = "pad", ledger: bool = False, run_dir: str | None = None) -> None:
        if tail not in TAILS:
            raise SettingsError(f"ElasticCallback(tail={tail!r}): choose one of {', '.join(map(repr, TAILS))}")
        self.session: ElasticSession | None = current_session(
            SessionSettings(tail=tail, ledger=ledger, run_dir=run_dir)
        )
        """`None` where the callback is inert."""
        self._said = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the trainer elastic, before anybody else's set-up."""
        if self.session is None:
            if not self._said:
                self._said = True
                rank_zero_info(INERT)
            return
        if stage != "fit":
            return
        make_elastic(trainer, pl_module, self.session)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ARG002  Lightning's signature
        if self.session is not None:
            self.session.recorder.batch_done(outputs)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self.session is not None:
            self.session.recorder.validation_begins()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self.session is not None:
            self.session.recorder.validation_done(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch's data, so that a checkpoint resumes at the exact sample in any world."""
        if self.session is None:
            return {}
        return {"progress": self.session.progress.state_dict() | {"validated": self.session.validated}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.session is not None:
            self.session.loaded_position = state_dict.get("progress")


def make_elastic(trainer: pl.Trainer, pl_module: pl.LightningModule, session: ElasticSession) -> None:
    """Turn the trainer's strategy and loops into elastic ones. Raises `SettingsError` for what cannot be."""
    _refuse_a_second_fit(session)
    refuse_module(pl_module)
    _make_strategy_elastic(trainer, session)
    make_loops_elastic(trainer)
    session.attach(trainer)
    if session.welcome.joiner:
        trainer.num_sanity_val_steps = 0  # the run has made sure long ago
    # Lightning registers this after the set-up hooks; the loops install the real handlers when training begins.
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: session.link.leaving("SIGTERM")  # type: ignore[method-assign]


def _refuse_a_second_fit(session: ElasticSession) -> None:
    if session.over or session.in_group:
        raise SettingsError(
            "this process has trained in an elastic run already; a second `fit` in the same process would have to join "
            "the run again. Start it as a run of its own, with another --rdzv-id."
        )


def _make_strategy_elastic(trainer: pl.Trainer, session: ElasticSession) -> None:
    strategy = trainer.strategy
    if isinstance(strategy, ElasticDDPStrategy):
        return
    connector = trainer._accelerator_connector
    if type(strategy) is DDPStrategy:
        strategy.__class__ = ElasticDDPStrategy
        strategy.adopt(session)  # type: ignore[attr-defined]
    elif type(strategy) is SingleDeviceStrategy:
        # What Lightning chooses by default for one CPU or one GPU, however many workers torchrun started.
        elastic = ElasticDDPStrategy(
            accelerator=strategy.accelerator,
            parallel_devices=[strategy.root_device],
            checkpoint_io=strategy.checkpoint_io,
            precision_plugin=strategy.precision_plugin,
        )
        elastic._lightning_module = strategy._lightning_module
        elastic.model = strategy.model
        elastic._layer_sync = getattr(strategy, "_layer_sync", None)
        connector.strategy = elastic
    else:
        raise SettingsError(
            f"Trainer(strategy={type(strategy).__name__}) cannot be made elastic: its process groups cannot be formed "
            'anew in mid-run. Write Trainer(strategy="ddp", callbacks=[ElasticCallback()]).'
        )
    connector.cluster_environment = session.cluster_environment
