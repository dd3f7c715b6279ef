"""Finds a run's folder from what people write: the folder, one above it, or the run's id.

A run's folder is `<default_root_dir>/dtf/<run id>`, or what `ElasticCallback(run_dir=...)` was given; `events/*.jsonl` or
`ledger/*.jsonl` in it shows that it is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dtf_lightning.errors import SettingsError

_MARKS = ("events/*.jsonl", "ledger/*.jsonl")
_BELOW = ("*", "dtf/*", "*/dtf/*")
"""Where runs lie below a folder that people name: `dtf`, `<default_root_dir>`, or one that holds several of these."""
_ABOVE = ("dtf", "*/dtf", "*")
"""Where a run's id, or a path that lacks its beginning, is looked for: below `<default_root_dir>` or the folder above."""


def find_run(place: str | Path) -> Path:
    """Return the absolute path of the run's folder that `place` names.

    `place` is the folder, one above it that holds a single run, or the run's id, which is looked for below the current
    folder. Raises `SettingsError`: nothing was found, or several runs, whose folders it names.
    """
    found = _candidates(Path(place))
    if len(found) == 1:
        return found[0]
    if found:
        raise SettingsError(
            f"{str(place)!r} could be several runs: {', '.join(map(_short, found))}. Name one of these folders"
        )
    folder = Path(place).absolute()
    state = (
        "has no events/*.jsonl and no ledger/*.jsonl, nor has a folder in it" if folder.is_dir() else "does not exist"
    )
    raise SettingsError(
        f"{str(place)!r} is no run's folder: {folder} {state}, and no run of that name was found below "
        f"{Path.cwd()}. A run's folder is <default_root_dir>/dtf/<run id>, or what ElasticCallback(run_dir=...) was given"
    )


def known_run(place: str | Path) -> Path | None:
    """Return the folder of the run that `place` names, as for `find_run`; `None` where there is none, or several."""
    found = _candidates(Path(place))
    return found[0] if len(found) == 1 else None


def found_or_later(place: Path) -> Path:
    """Return the run's folder that `place` names, or `place` itself as the one that a run is still to make."""
    return known_run(place) or place


def _candidates(place: Path) -> list[Path]:
    """Return the folders that `place` may mean, of the first kind that there is."""
    folder = place.absolute()
    if _is_run(folder):
        return [folder]
    if below := sorted({path for pattern in _BELOW for path in folder.glob(pattern) if _is_run(path)}):
        return below
    return [] if place.is_absolute() or ".." in place.parts else sorted(set(_named(place)))


def _named(place: Path) -> Iterator[Path]:
    for above in _ABOVE:
        for folder in Path.cwd().glob(above):
            path = folder / place
            if _is_run(path):
                yield path


def _is_run(folder: Path) -> bool:
    return any(next(folder.glob(mark), None) is not None for mark in _MARKS)


def _short(folder: Path) -> str:
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else str(folder)
