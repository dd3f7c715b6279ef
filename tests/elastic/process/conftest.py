from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.etcd import connect
from support.elastic.run import ElasticRun, exactly
from support.elastic.training import Training

PAUSES = os.environ.get("DTF_TEST_PAUSES")
"""A file; every test appends the pauses that it saw."""


@pytest.fixture(scope="session")
def undisturbed(fork_server, etcd, tmp_path_factory) -> Callable[[Training, int], dict[str, Any]]:
    """What a training comes to, in a world of so many, when nothing goes wrong; found out once."""
    known: dict[tuple[Training, int], dict[str, Any]] = {}

    def find_out(training: Training, world_size: int) -> dict[str, Any]:
        if (training, world_size) not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            with connect(etcd.endpoint, quiet=True) as store:
                run = ElasticRun(fork_server, store, etcd.endpoint, folder, training, exactly(world_size))
                run.start(*"abcdefgh"[:world_size])
                run.wait_until_over()
            run.check(survivors=world_size)
            known[training, world_size] = next(iter(run.results().values()))["same"]
        return known[training, world_size]

    return find_out


@pytest.fixture
def make_run(request, fork_server, etcd, store, tmp_path) -> Iterator[Callable[..., ElasticRun]]:
    """Makes runs; what they leave running is ended."""
    runs: list[ElasticRun] = []

    def make(training: Training = Training(), *, run_id: str | None = None, **elastic: float) -> ElasticRun:  # noqa: B008
        folder = tmp_path / f"run{len(runs)}"
        folder.mkdir()
        runs.append(ElasticRun(fork_server, store, etcd.endpoint, folder, training, elastic))
        runs[-1].run_id = run_id or runs[-1].run_id
        return runs[-1]

    yield make
    for run in runs:
        run.close()
        if PAUSES:
            seen = [f"{event.rescale}:{1000 * event.pause:.0f}" for event in run.rescales()]
            with Path(PAUSES).open("a") as file:
                file.write(f"{request.node.name} {' '.join(seen)}\n")
