"""`AfterTraining` by itself: which failures are a lost peer's, and what is tried again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from dtf_lightning.elastic.lightning.after_training import AfterTraining
from dtf_lightning.elastic.lightning.host.names import TrainerFn
from dtf_lightning.errors import PeerError

LOST = RuntimeError("[gloo] Connection closed by peer")


class Run:
    """A run that is over, in a world of this size; it can be gone on with alone in a world of two."""

    def __init__(self, size: int = 2, *, over: bool = True) -> None:
        self.world = SimpleNamespace(size=size)
        self.over = over
        self.alone: list[str] = []

    def go_on_alone(self, what: str, error: Exception) -> None:
        assert error is LOST
        self.alone.append(what)
        if self.world.size > 2:
            raise PeerError(what)
        self.world.size = 1


TESTING = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.TESTING))


class Work:
    """Fails with each of the errors in turn, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.num_calls = list(errors), 0

    def __call__(self) -> None:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)


def make(run: Run) -> AfterTraining:
    return AfterTraining(run)  # type: ignore[arg-type]


def test_set_up_meets_the_loss() -> None:
    """The strategy's set-up synchronizes weights: it fails, this worker goes on alone, and is set up again."""
    run, work = Run(), Work(LOST)
    make(run).set_up(TESTING, work)
    assert (work.num_calls, run.alone) == (2, ["trainer.test"])


def test_a_loss_that_was_tolerated() -> None:
    """A barrier before the test failed: dealt with before anything is evaluated."""
    run, work = Run(), Work()
    after = make(run)
    assert after.tolerates(LOST)
    after.set_up(TESTING, work)
    assert (work.num_calls, run.alone) == (1, ["trainer.test"])


def test_it_stays_refused() -> None:
    """In a larger world every evaluation that follows is refused, too."""
    run, work = Run(3), Work(LOST)
    after = make(run)
    for _ in range(2):
        with pytest.raises(PeerError):
            after.set_up(TESTING, work)
    assert (work.num_calls, run.alone) == (1, ["trainer.test"] * 2)


def test_an_error_of_the_users_own() -> None:
    """Nothing is tried again, and the collectives that fail after it are not this worker's business."""
    run, work = Run(), Work(ValueError("of the user's own"))
    with pytest.raises(ValueError, match="of the user's own"):
        make(run).set_up(TESTING, work)
    assert (work.num_calls, run.alone) == (1, [])


@pytest.mark.parametrize(("over", "fn"), [(False, TrainerFn.TESTING), (True, TrainerFn.FITTING)])
def test_not_after_training(over: bool, fn: Any) -> None:
    """Before the end of training, and in `fit` itself, a lost peer is others' business."""
    run, work = Run(over=over), Work(LOST)
    with pytest.raises(RuntimeError, match="Connection closed"):
        make(run).set_up(SimpleNamespace(state=SimpleNamespace(fn=fn)), work)
    assert run.alone == []
    assert make(Run(over=False)).tolerates(LOST) is False
    assert make(Run()).tolerates(RuntimeError("of the user's own")) is False


def test_a_loader_that_is_divided_for_two() -> None:
    """Alone, a sampler of the script's own would evaluate a share only: refused, with what to write."""
    after, data = make(Run()), list(range(8))
    mine = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))  # type: ignore[arg-type, var-annotated]
    after.check_loader(mine)
    assert after.tolerates(LOST)
    after.set_up(TESTING, Work())
    with pytest.raises(PeerError, match=r"divides the samples by 2.* Leave the sampler to Lightning"):
        after.check_loader(mine)
    after.check_loader(DataLoader(data))  # type: ignore[arg-type, var-annotated]
