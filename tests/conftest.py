"""Polices every test: what it leaves behind (environment, threads, processes, sockets, files) fails it, by name.

Collecting the unit tests imports neither torch nor Lightning: this file must not either.
"""

from __future__ import annotations

import gc
import os
import signal
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from support import durations, leaks, units
from support.etcd_cluster import etcd, etcd_cluster, prefix, steady_cluster, store
from support.fork_server import fork_server

# Here, so that there is one etcd and one fork server for the tests of all rooms.
__all__ = ["etcd", "etcd_cluster", "fork_server", "prefix", "steady_cluster", "store"]

# torch's TCPStore looks up the name of whoever it connects to. Where reverse DNS does not answer, that takes 5 s now and
# then; nothing here depends on a name.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
# Whatever the tests start has a core or less: more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes would compile our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The same examples every time, however long the machine takes over one of them or over making them.
settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")

pytest_plugins = ["pytester"]  # for the police's own test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--note-durations", action="store_true", help="write tests/durations.json anew")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return units.scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    durations.sort(items)


def pytest_collection() -> None:
    """What is imported and collected stays: looking for garbage among it takes half as long again as making it."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From now on no collection looks through it, which takes a third of a second with torch."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--note-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(durations.Durations())
    leaks.mark_children(uuid.uuid4().hex)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # The shell does so for what it runs in the background, and what the tests start would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def police(request: pytest.FixtureRequest):
    """Fixtures of a wider scope are set up before this one: what they hold does not count against the test."""
    marker = request.node.get_closest_marker("leaks")
    if marker is not None and not marker.kwargs.get("reason"):
        pytest.fail("write the reason beside it: @pytest.mark.leaks(reason='...')")
    before = leaks.Snapshot.take()
    yield
    left = before.clean_up(allowed=marker is not None)
    if left and marker is None:
        pytest.fail("the test left behind:\n" + "\n".join(f"  {line}" for line in left), pytrace=False)
