"""A scripted agent and a store for elastic runs of world size 1 in this process."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def store_port() -> Iterator[int]:
    """A TCPStore as an agent hosts it; generations take prefixes of their own."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)  # tiny models: more threads only wait for each other
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without Lightning's advice about workers, logging intervals and folders, and with its choice of threads made."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def start_run(monkeypatch: pytest.MonkeyPatch, store_port: int) -> Iterator[Callable[..., Any]]:
    """Start an agent for this process; afterwards the process is as if it had never met one. May be called again."""
    from dtf_lightning.elastic.lightning.run import current as current_module
    from support.elastic.run_of_one import RunOfOne

    runs: list[tuple[RunOfOne, tempfile.TemporaryDirectory[str]]] = []

    def end() -> None:
        current, current_module._current = current_module._current, None
        if current is not None:
            current.close()
        while runs:
            run, folder = runs.pop()
            run.close()
            folder.cleanup()

    def start(**changed: Any) -> RunOfOne:
        end()
        folder = tempfile.TemporaryDirectory(prefix="dtf")  # a unix socket's path must be short
        run = RunOfOne(Path(folder.name), store_port, **changed)
        runs.append((run, folder))
        for name, value in {"DTF_AGENT_SOCKET": run.agent.path, "LOCAL_RANK": "0", "RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        return run

    yield start
    end()


@pytest.fixture
def run(start_run: Callable[..., Any]) -> Any:
    """One agent that says what its tests do not say."""
    return start_run()
