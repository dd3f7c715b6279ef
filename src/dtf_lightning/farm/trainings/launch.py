"""Makes the command line of a training's parts: the one place where the farm knows how an elastic training is started.

The farm imports nothing of the elastic half: it starts `torchrun` with a rendezvous backend's name, as anybody would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtf_lightning.errors import SettingsError

PRIORITY = -10
"""Of a training whose submission says nothing: tests and benchmarks go first."""


def read_workers(text: str) -> tuple[int, int]:
    """Return minimum and maximum of `MIN:MAX`. Raises `SettingsError` for any other text."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise SettingsError(f"--workers {text!r}: expected MIN:MAX, such as 1:8")
    return int(parts[0]), int(parts[1])


def command(
    script: str,
    arguments: Sequence[str],
    *,
    run: str,
    workers: tuple[int, int],
    endpoint: str,
    python: str = "python",
    options: Mapping[str, str] | None = None,
) -> list[str]:
    """Return what each part of a training runs.

    Args:
        script: that trains, a path in the part's folder.
        arguments: of the script.
        run: id of the run, which all parts have in common.
        workers: how many parts it has at least, and at most.
        endpoint: of the etcd at which they meet, as every worker reaches it.
        python: that the workers have.
        options: of the rendezvous, as in `--rdzv-conf`.

    Raises `SettingsError` for numbers that cannot be.
    """
    least, most = workers
    if not 1 <= least <= most:
        raise SettingsError(
            f"a training with {least} to {most} workers: the minimum must be 1 or more, and at most the maximum"
        )
    if least > 1:
        raise SettingsError(
            f"a training that needs {least} workers at once is not there yet: say --workers 1:{most}, and it starts with one"
        )
    if not script or not endpoint:
        raise SettingsError("a training needs a script, and the endpoint of an etcd that its workers reach")
    conf = ",".join(f"{name}={value}" for name, value in (options or {}).items())
    return [
        python,
        "-m",
        "torch.distributed.run",
        f"--nnodes={least}:{most}",
        "--nproc-per-node=1",
        "--rdzv-backend=etcd",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={run}",
        *([f"--rdzv-conf={conf}"] if conf else []),
        script,
        *arguments,
    ]
