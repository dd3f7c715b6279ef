"""Restart mode in one process: a life of its workers ends at any place, and the next one goes on at the exact sample."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.lightning import restart_session, session
from dtf_lightning.lightning.restart_session import WorkerStopped
from support.restart_life import Ending, environment_of_torchrun
from support.run_of_one import Net, Outcome, fit

LAST_STEP = 18
"""3 epochs of 6 batches."""


@pytest.fixture
def life(tmp_path: Path, store_port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run one life of the workers; afterwards the process is as if it had never been one."""
    environment_of_torchrun(monkeypatch, store_port)
    monkeypatch.setattr(restart_session, "PEER_PATIENCE", 0.0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def live(*endings: Ending, callbacks: Any = (), snapshots: Any = None, **arguments: Any) -> Outcome:
        given = {"snapshot_dir": str(tmp_path / "memory"), "run_dir": str(tmp_path / "run"), **(snapshots or {})}
        (tmp_path / "memory").mkdir(exist_ok=True)
        try:
            return fit(tmp_path, elastic=True, callbacks=[*callbacks, *endings], snapshots=given, **arguments)
        finally:
            current, session._current = session._current, None
            if current is not None:
                current.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return live


def lives(live: Callable[..., Any], ending: Ending, **arguments: Any) -> tuple[Net, Outcome]:
    """One life up to the ending, the next to the end; the first one's model, and what the second left."""
    with pytest.raises((WorkerStopped, RuntimeError)):
        live(ending, **arguments)
    return ending.model, live(**arguments)


ENDINGS = [
    Ending("on_train_batch_start", 0),
    Ending("on_train_batch_start", 4),
    Ending("on_before_optimizer_step", 4, "collective"),
    Ending("on_before_zero_grad", 4, "collective"),
    Ending("on_train_batch_end", 4),
    Ending("on_train_batch_end", 6),
    Ending("on_validation_batch_start", 6),
    Ending("on_validation_end", 12, "collective"),
    Ending("on_train_epoch_end", 12),
    Ending("on_train_epoch_start", 12),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_goes_on_at_the_exact_sample(tmp_path: Path, life: Any, ending: Ending) -> None:
    """SIGTERM, or a collective that fails, at any place: bitwise the training that nothing disturbed, dropout included."""
    undisturbed = fit(tmp_path, elastic=False)
    first, second = lives(life, ending)
    assert second.trainer.global_step == LAST_STEP
    done = len(second.model.drawn)
    assert second.model.drawn == undisturbed.model.drawn[-done:]
    assert second.model.losses == undisturbed.model.losses[-done:]
    assert {name: value.tolist() for name, value in second.state().items()} == {
        name: value.tolist() for name, value in undisturbed.state().items()
    }
    begun = len(undisturbed.model.drawn) - done  # steps of the first life that count
    assert first.drawn[:begun] == undisturbed.model.drawn[:begun]
    assert len(first.drawn) - begun <= 1
