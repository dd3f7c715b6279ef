"""The sender's side of a run, told once: the repository's files, and what is alike in all shards."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.farm.pytest_runs.options import PATH, PLUGIN, FarmOptions, arguments
from dtf_lightning.farm.pytest_runs.selection import Collected
from dtf_lightning.farm.sources import Source, pack

LOCK = "uv.lock"


@dataclass(frozen=True, kw_only=True)
class LocalSide:
    """Where a run was started, and how."""

    source: Source
    top: Path
    """Of what the source holds."""
    folder: str
    """In which pytest was started, relative to the top; "": at the top."""
    common: dict[str, Any]
    """What every shard's file holds."""

    @classmethod
    def of(cls, config: pytest.Config, options: FarmOptions) -> LocalSide:
        """Pack the repository's files. Raises `SettingsError` where that cannot be, and `pytest.UsageError`."""
        source = pack(config.rootpath)
        top = config.rootpath
        for _ in Path(source.folder).parts:
            top = top.parent
        here = config.invocation_params.dir
        if not here.is_relative_to(top):
            raise pytest.UsageError(
                f"pytest was started in {here}, and the tests' repository is {top}: start it there, or leave out --farm"
            )
        _check_lock(options.python, here, top)
        folder = _below(here, top)
        searched: tuple[str, ...] = config.stash.get(PATH, tuple(sys.path))
        common = {
            "sender_top": str(top),
            "folder": folder,
            "path": list(dict.fromkeys(_searched(searched, here, top))),
            "plugin": PLUGIN,
            "python": list(options.python),
            "arguments": [f"--rootdir={config.rootpath}", *arguments(config)],
        }
        return cls(source=source, top=top, folder=folder, common=common)

    def shard_file(self, tests: Sequence[Collected], timeout: float | None) -> bytes:
        """Return the file of a shard. `timeout`: seconds, of tests whose mark says none."""
        told = {
            **self.common,
            "nodeids": [test.nodeid for test in tests],
            "files": list(dict.fromkeys(test.file for test in tests)),
            "timeouts": [test.marked.timeout or timeout for test in tests],
        }
        return json.dumps(told).encode()


def _check_lock(python: Sequence[str], here: Path, top: Path) -> None:
    """Raise `pytest.UsageError` where uv is to make an environment of a lock file, and there is none."""
    if Path(next(iter(python), "")).name != "uv" or not {"--frozen", "--locked"} & set(python):
        return
    if not any((place / LOCK).is_file() for place in (here, *here.parents) if place.is_relative_to(top)):
        raise pytest.UsageError(
            f"--farm-python {' '.join(python)!r} makes an environment of the repository's {LOCK}, and there is none in {here} or "
            f"above it, up to {top}: `uv lock` makes it"
        )


def _searched(path: Iterable[str], here: Path, top: Path) -> Iterable[str]:
    for entry in path:
        place = here / entry  # "" is the folder in which Python was started
        if place.is_dir() and place.is_relative_to(top):
            yield _below(place, top)


def _below(place: Path, top: Path) -> str:
    inside = place.relative_to(top).as_posix()
    return "" if inside == "." else inside
