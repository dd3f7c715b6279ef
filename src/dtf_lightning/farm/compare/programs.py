"""The two programs of a comparison: commands as they are, or one command in two commits of a git repository."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.processes import run_to_end

PATIENCE = 120.0
"""Seconds for one command of git."""
_TAIL = 2000


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is run for one side."""

    named: str
    """As the user said it."""
    command: tuple[str, ...]
    folder: Path


def two_commands(base: str, candidate: str, folder: Path) -> tuple[Program, Program]:
    """Return two shell lines as programs. Raises `SettingsError` for an empty one."""
    for line in (base, candidate):
        if not line.strip():
            raise SettingsError(
                'a command is empty; expected two, such as dtf farm compare "python a.py" "python b.py"'
            )
    programs = [Program(named=line, command=("/bin/sh", "-c", line), folder=folder) for line in (base, candidate)]
    return programs[0], programs[1]


@contextlib.contextmanager
def two_commits(
    base: str, candidate: str, command: Sequence[str], folder: Path, *, setup: str | None, patience: float
) -> Iterator[tuple[Program, Program]]:
    """Check two commits out beside each other, set each up, and remove them at the end.

    Args:
        base: a commit, branch or tag of the repository that `folder` belongs to; only what is committed is compared.
        command: is run in each of them, in the same folder below the repository's as `folder` is.
        setup: a shell line that is run once in each before, to build it.
        patience: seconds for the setup.

    Raises `SettingsError` for a folder that belongs to no repository, a commit that it does not have, and a setup that fails.
    """
    top = Path(_git(folder, "rev-parse", "--show-toplevel", told=f"{folder} belongs to no git repository"))
    below = folder.resolve().relative_to(top.resolve())
    commits = [
        _git(
            folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}",
            told=f"{name!r} is no commit, branch or tag of {top}. To compare two commands, leave out what stands behind --",
        )
        for name in (base, candidate)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="dtf-compare-") as made, contextlib.ExitStack() as stack:
        programs = []
        for side, name, commit in zip(("base", "candidate"), (base, candidate), commits, strict=True):
            place = Path(made) / side
            _git(
                folder,
                "worktree",
                "add",
                "--detach",
                "--quiet",
                str(place),
                commit,
                told=f"{name} cannot be checked out",
            )
            stack.callback(_remove, folder, place)
            inside = place / below
            if not inside.is_dir():
                raise SettingsError(f"{name} has no folder {below}, in which the command is to run")
            if setup is not None:
                _set_up(setup, inside, f"the {side} {name}", patience)
            programs.append(Program(named=f"{name} ({commit[:10]})", command=tuple(command), folder=inside))
        yield programs[0], programs[1]


def _set_up(setup: str, folder: Path, name: str, patience: float) -> None:
    with tempfile.TemporaryFile() as output:
        ended = run_to_end(("/bin/sh", "-c", setup), folder, output=output.fileno(), timeout=patience)
        if ended.failure:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(size - _TAIL, 0))
            tail = output.read().decode(errors="replace").strip()
            raise SettingsError(f"{name} cannot be built: {setup!r} {ended.failure}" + (f":\n{tail}" if tail else ""))


def _remove(folder: Path, place: Path) -> None:
    """Best effort: what is left is git's to prune, and the folder goes with the temporary one."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        subprocess.run(
            ["git", "worktree", "remove", "--force", str(place)],
            cwd=folder, capture_output=True, timeout=PATIENCE, check=False,
        )  # fmt: skip


def _git(folder: Path, *arguments: str, told: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise SettingsError("git is not installed here: commits can be compared only with it") from None
    except subprocess.TimeoutExpired:
        raise SettingsError(f"{told}: git {arguments[0]} did not answer within {PATIENCE:g} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise SettingsError(f"{told}{f' ({words})' if words else ''}")
    return done.stdout.decode(errors="replace").strip()
