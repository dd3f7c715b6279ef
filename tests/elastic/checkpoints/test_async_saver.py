"""Copies that are written beside training: what the training thread waits for, and in which order."""

from __future__ import annotations

import pytest
import torch

from dtf_lightning.elastic.checkpoints.async_saver import AsyncSaver
from dtf_lightning.elastic.checkpoints.staging import storages_of


@pytest.fixture
def state():
    return {"weight": torch.ones(1 << 16)}  # larger than what is copied at once


@pytest.mark.parametrize("then", ["save", "submit", "flush"])
def test_who_waits_for_the_thread_has_waited_for_the_copy(state, then):
    """The thread looks out for changes by the training thread, which is waiting for it: it would look for 10 s."""
    saver, written = AsyncSaver(max_in_flight=2), []

    def save() -> None:
        saver.save(state, lambda: storages_of(state.values()), written.append, "a copy")

    save()
    first = saver._copying
    match then:
        case "save":
            save()
        case "submit":
            saver.submit(lambda: written.append("job"))
        case "flush":
            saver.flush()
    assert first._waited.is_set()
    saver.flush()
    assert torch.equal(written[0]["weight"], state["weight"])
    assert len(written) == (1 if then == "flush" else 2)


def test_a_torn_copy_is_given_up_and_remembered(state, caplog):
    """A change before the copy is done is found; from then on everything is copied at once."""
    saver, written = AsyncSaver(), []
    saver.save(state, lambda: storages_of(state.values()), written.append, "the first")
    torn = saver._copying._copier is not None
    state["weight"].add_(1)
    saver.flush()
    saver.save(state, lambda: storages_of(state.values()), written.append, "the second")
    state["weight"].add_(1)
    saver.flush()
    assert float(written[-1]["weight"][0]) == 2.0
    if torn and len(written) == 1:
        assert "the first is given up" in caplog.text
