"""`AfterTraining` handles deaths in what a script does after `fit`: `trainer.test`, `trainer.validate`, `trainer.predict`.

The run is over for its agents then, and forms no generation any more. Rules that this file guards:

* an evaluation gives a result over all samples, each evaluated once as far as the script's loaders allow it, or none: what
  the shares of some of the workers make is never taken for the whole;
* in live mode the survivor of two workers becomes a world of one, rank zero included, and runs the evaluation from its
  beginning; the survivors of a larger world, who cannot know who else has survived, are refused in words. In restart mode
  all workers are started anew, take the final state, and evaluate in the world that is there then;
* the workers wait for each other at an evaluation's end, so that the death of one is seen by all;
* what the interrupted evaluation had changed in the module and callbacks is put back before it runs again (`Undo`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import DistributedSampler

from dtf_lightning.elastic.collectives.communication import is_communication_error
from dtf_lightning.elastic.lightning.host.loops import leave_evaluation
from dtf_lightning.elastic.lightning.host.names import TrainerFn
from dtf_lightning.errors import PeerError

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.run.interface import ElasticRun

log = logging.getLogger("dtf_lightning")

T = TypeVar("T")


class AfterTraining:
    """One worker's evaluations after training. The strategy holds it."""

    def __init__(self, run: ElasticRun) -> None:
        self._run = run
        self._lost: Exception | None = None
        """Error of the collective whose failure showed that a peer is gone; `None` while all are there, or all are gone."""
        self._within = False
        """Whether an evaluation runs that runs again if a peer is lost."""
        self._alone = False
        """Whether this worker has become a world of one."""

    def tolerates(self, error: RuntimeError) -> bool:
        """Tell whether this worker goes on after a collective that has failed; the next evaluation deals with it."""
        if not self._run.over or self._within or not is_communication_error(error):
            return False
        self._lost = error
        return True

    def set_up(self, trainer: Any, set_up: Callable[[], None]) -> None:
        """Set the strategy up for `fit` or for an evaluation, which synchronizes weights. Raises like `evaluate`."""
        if trainer.state.fn == TrainerFn.FITTING or not self._run.over:
            set_up()
            return
        self._attempt(trainer, set_up, lambda: None)

    def evaluate(self, loop: Any, run_loop: Callable[[], T]) -> T:
        """Run an evaluation loop, once more if the only peer is lost in it.

        Raises `PeerError` if a peer was lost and this worker alone cannot evaluate all samples.
        """
        run, trainer = self._run, loop.trainer
        if not run.over or (run.world.size == 1 and self._lost is None):
            return run_loop()
        undo = run.rewind.undo
        undo.validation_begins(trainer)

        def whole() -> T:
            result = run_loop()
            trainer.strategy.barrier()  # nothing else in a prediction shows that a peer, and its share, is lost
            return result

        def put_back() -> None:
            leave_evaluation(loop)
            undo.roll_hooks_back(trainer)
            undo.warn()

        try:
            return self._attempt(trainer, whole, put_back)
        finally:
            undo.hooks_done()

    def check_loader(self, loader: Any) -> None:
        """Raise `PeerError` for a loader of which this worker, alone now, would evaluate a part only."""
        sampler = getattr(loader, "sampler", None)
        if self._alone and isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise PeerError(
                f"the other worker is gone, and the loader's {type(sampler).__name__} divides the samples by "
                f"{sampler.num_replicas}: this worker would evaluate its share only. Leave the sampler to Lightning "
                "(a DataLoader without a sampler of your own, in no CombinedLoader), or evaluate in a run of its own"
            )

    def _attempt(self, trainer: Any, work: Callable[[], T], put_back: Callable[[], None]) -> T:
        self._deal_with_loss(trainer)
        if self._run.world.size == 1:
            return work()
        self._within = True
        try:
            return work()
        except Exception as error:
            if not is_communication_error(error):
                raise
            self._lost = error
        finally:
            self._within = False
        put_back()
        self._deal_with_loss(trainer)
        return work()

    def _deal_with_loss(self, trainer: Any) -> None:
        if self._lost is None:
            return
        error, self._lost = self._lost, None
        what = f"trainer.{trainer.state.fn.value}"
        try:
            self._run.go_on_alone(what, error)
        except BaseException:
            self._lost = error  # whatever the script does next is not done by some of the workers, either
            raise
        self._alone = True
        log.warning(
            "the other worker went away after the end of training (%s): %s runs from its beginning, over all samples, on this "
            "worker, which is rank 0 of 1 now. Files that the other one has written in it are still there",
            *(str(error).splitlines()[0][:200], what),
        )
