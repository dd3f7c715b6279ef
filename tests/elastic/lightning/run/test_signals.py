"""SIGTERM and Ctrl-C: the first asks, the second interrupts, and what was installed before comes back."""

from __future__ import annotations

import signal

import pytest

from dtf_lightning.elastic.lightning.run.signals import graceful_signals, stopping_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def _own_handlers():
    """The test's process must not end by a signal that a failing test lets through."""
    former = {number: signal.signal(number, lambda *_: pytest.fail("nobody handled the signal")) for number in NUMBERS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("first", "second"), [(one, other) for one in NUMBERS for other in NUMBERS])
def test_the_first_asks_to_leave_and_the_second_interrupts(first, second):
    asked = []
    with graceful_signals(asked.append):
        signal.raise_signal(first)
        assert asked == [first.name]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)
    assert asked == [first.name]


def test_former_handlers_come_back():
    """Whatever ended it."""
    before = [signal.getsignal(number) for number in NUMBERS]
    with graceful_signals(lambda _: None):
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before
    with pytest.raises(ValueError, match="from training"), graceful_signals(lambda _: None):
        raise ValueError("from training")
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_handler_that_python_does_not_know(monkeypatch):
    """Installed by a C library: it cannot be put back, the default takes its place."""
    monkeypatch.setattr(signal, "getsignal", lambda _: None)
    with graceful_signals(lambda _: None):
        pass
    monkeypatch.undo()
    assert [signal.getsignal(number) for number in NUMBERS] == [signal.SIG_DFL] * 2


def test_each_use_asks_anew():
    asked = []
    for _ in range(2):
        with graceful_signals(asked.append):
            signal.raise_signal(signal.SIGTERM)
    assert asked == ["SIGTERM"] * 2


def test_workers_that_are_started_anew_take_any_number_of_sigterms():
    """The scheduler's and the agent's are one; a second Ctrl-C interrupts. Who does not stop has the former handlers back."""
    before = [signal.getsignal(number) for number in NUMBERS]
    asked = []
    with stopping_signals(asked.append, lambda: False):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert asked == ["SIGTERM"] * 3 + ["SIGINT"]
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_a_worker_that_stops_is_not_cut_short():
    """What it has still to write comes after the loops were left: the handlers stay."""
    asked = []
    with stopping_signals(asked.append, lambda: bool(asked)):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert asked == ["SIGTERM", "SIGTERM"]
