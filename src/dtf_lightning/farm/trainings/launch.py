"""Makes the command line of a training's parts: the one place where the farm knows how an elastic training is started.

The farm imports nothing of the elastic half: it starts `torchrun` with a rendezvous backend's name, as anybody would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.gangs import MAX_GANG

PRIORITY = -10
"""Of a training whose submission says nothing: tests and benchmarks go first."""
RESUME = {"resume": "true"}
"""Of the rendezvous: a run that all its parts have left goes on when some come, and one that has finished stays so."""
PROGRESS_FILE = "training.jsonl"
"""Among what a part reports: its run's generation, world and goodput, kept up to date by its torchrun."""
PROGRESS = {"progress": f"$DTF_FARM_RESULTS/{PROGRESS_FILE}"}
NOT_IN_RESTART_MODE = (
    "a training in restart mode cannot be suspended (suspend_for): its snapshots lie in the memory of its workers, which all "
    "leave. Train with ElasticCallback(), or leave suspend_for out"
)
_RUN = "--rdzv-id="
_OWN = f"{_RUN}$DTF_FARM_TRAINING"
"""Stands in what was asked for: two that ask for the same training ask for the same, whatever ids they choose."""


def read_workers(text: str) -> tuple[int, int]:
    """Return minimum and maximum of `MIN:MAX`. Raises `SettingsError` for any other text, and for numbers that cannot be."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise SettingsError(f"the workers {text!r} cannot be read; expected MIN:MAX, such as 1:8")
    workers = int(parts[0]), int(parts[1])
    check_workers(workers)
    return workers


def check_workers(workers: tuple[int, int]) -> None:
    """Raise `SettingsError` for a minimum and a maximum that cannot be."""
    least, most = workers
    if not 1 <= least <= most <= MAX_GANG:
        raise SettingsError(
            f"a training with {least} to {most} workers: the minimum must be 1 or more, and at most the maximum, which is "
            f"{MAX_GANG} at most"
        )


def command(
    script: str,
    arguments: Sequence[str],
    *,
    workers: tuple[int, int],
    endpoint: str,
    python: str = "python",
    options: Mapping[str, str] | None = None,
    suspended: bool = False,
) -> list[str]:
    """Return what each part of a training runs, but for the id of its run (`of_run`).

    Args:
        script: that trains, a path in the part's folder.
        arguments: of the script.
        workers: how many parts it has at least, and at most.
        endpoint: of the etcd at which they meet, as every worker reaches it.
        python: that the workers have.
        options: of the rendezvous, as in `--rdzv-conf`.
        suspended: whether work may get all its devices. It trains with `ElasticCallback()` then, or ends with an error that says so.

    Raises `SettingsError` for numbers that cannot be, and for a training in restart mode that may be suspended.
    """
    check_workers(workers)
    if suspended:
        if (options or {}).get("mode") == "restart":
            raise SettingsError(NOT_IN_RESTART_MODE)
        options = {**(options or {}), "mode": "live"}
    if not script or not endpoint:
        raise SettingsError("a training needs a script, and the endpoint of an etcd that its workers reach")
    conf = ",".join(f"{name}={value}" for name, value in {**RESUME, **PROGRESS, **(options or {})}.items())
    return [
        python,
        "-m",
        "torch.distributed.run",
        f"--nnodes={workers[0]}:{workers[1]}",
        "--nproc-per-node=1",
        "--rdzv-backend=etcd",
        f"--rdzv-endpoint={endpoint}",
        _OWN,
        f"--rdzv-conf={conf}",
        script,
        *arguments,
    ]


def of_run(command: Sequence[str], run: str) -> tuple[str, ...]:
    """Return a part's command, with the id of the run that all parts have in common."""
    return tuple(f"{_RUN}{run}" if word == _OWN else word for word in command)
