"""One life after the other of a worker in restart mode, in this process."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.elastic.lightning.restart import membership
from dtf_lightning.elastic.lightning.run import current as current_module
from support.elastic.programs.restart_life import Ending, Unhurried, environment_of_torchrun
from support.elastic.run_of_one import Outcome, fit


@pytest.fixture
def life(tmp_path: Path, store_port: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run one life of the workers; afterwards the process is as if it had never been one.

    `agent`: the name of the torchrun that starts it. `ends_well`: false leaves what a process that is killed after `fit` does.
    """
    monkeypatch.setattr(membership, "PEER_PATIENCE", 0.0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def live(
        *endings: Ending,
        callbacks: Any = (),
        snapshots: Any = None,
        run_id: str = "run",
        agent: str = "agent",
        ends_well: bool = True,
        **arguments: Any,
    ) -> Outcome:
        environment_of_torchrun(monkeypatch, store_port, run_id)
        monkeypatch.setattr(membership, "agent_name", lambda: agent)
        given = {"snapshot_dir": str(tmp_path / "memory"), "run_dir": str(tmp_path / "run"), **(snapshots or {})}
        (tmp_path / "memory").mkdir(exist_ok=True)
        try:
            outcome = fit(
                tmp_path, elastic=True, callbacks=[*callbacks, Unhurried(), *endings], snapshots=given, **arguments
            )
            if ends_well:
                current_module._current.membership.run.node.leave()
            return outcome
        finally:
            current, current_module._current = current_module._current, None
            if current is not None:
                current.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    return live
