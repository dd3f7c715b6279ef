"""A farm in this process that is never taken for dead: with each of its limits that a slow machine could reach, so long
that it is not reached.

Who waits for a silence or for a death in a test sets its limit in that test, and waits for what follows from it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

PATIENCE = 30.0
"""Seconds; only a failing test waits this long."""

LIMITS = {
    "http": ("ANSWER_TIMEOUT",),
    "updates": ("OPEN_TIMEOUT", "SILENCE"),
    "page.live": ("BEHIND",),
    "record.lane": ("CLOSE_TIMEOUT",),
    "record.follower": ("CLOSE_TIMEOUT",),
    "results.history": ("FRESH", "CLOSE_TIMEOUT"),
    "results.store": ("READER_PATIENCE",),
    "results.tail": ("CLOSE_TIMEOUT",),
    "security.trust": ("PROBE_TIMEOUT",),
    "server.clients.retries": ("SHOWN",),
    "server.cluster.cluster": ("HAND_OVER", "LAST_WORD", "WRITE"),
    "server.outside.workers": ("SILENCE", "SHOWN", "WRITE"),
    "server.doors.office": ("SHOWN",),
    "server.orchestrations.keeper": ("SHOWN",),
    "server.orchestrations.orchestrations": ("SHOWN", "WRITE"),
    "server.routes.projects": ("SHOWN",),
    "server.schedules.keeper": ("SHOWN",),
    "server.schedules.registering": ("SHOWN",),
    "server.tasks": ("SHOWN", "WRITE"),
    "server.updates.socket": ("SEND_TIMEOUT",),
    "server.wire.turnstile": ("DRAIN",),
    "server.workers": ("SILENCE", "WELCOME_TIMEOUT"),
    "worker.logs": ("JOIN_TIMEOUT",),
    "worker.service.link": ("OPEN_TIMEOUT", "SILENCE", "WELCOME_TIMEOUT"),
}
"""Module of the farm -> its limits."""


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """For the tests of whoever imports it. In processes that a test starts the limits are what they are."""
    with pytest.MonkeyPatch.context() as patch:
        for name, limits in LIMITS.items():
            module = importlib.import_module(f"dtf_lightning.farm.{name}")
            for limit in limits:
                patch.setattr(module, limit, PATIENCE)
        yield
