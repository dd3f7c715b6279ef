"""The two programs of a comparison: commands as they are, or one command in two commits of a git repository."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.processes import run_to_end
from dtf_lightning.farm.git import PATIENCE, run_git

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


class CannotBeBuilt(SettingsError):
    """A commit cannot be checked out, or its setup fails."""


class Checkouts:
    """Commits of one repository, checked out beside each other in a temporary folder, which goes with them at the end.

    Args:
        folder: in the repository; what runs, runs in the same folder below it.
        setup: a shell line that is run once in each, to build it.
        patience: seconds for the setup.

    Raises `SettingsError` for a folder that belongs to no repository.
    """

    def __init__(self, folder: Path, *, setup: str | None, patience: float) -> None:
        self._folder, self._setup, self._patience = folder, setup, patience
        top = Path(_git(folder, "rev-parse", "--show-toplevel", told=f"{folder} belongs to no git repository"))
        self._top, self._below = top, folder.resolve().relative_to(top.resolve())
        self._stack = contextlib.ExitStack()
        self._made = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dtf-compare-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def commit(self, name: str) -> str:
        """Return a commit's digest. Raises `SettingsError` for what is none."""
        return _git(
            self._folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}",
            told=f"{name!r} is no commit, branch or tag of {self._top}. To compare two commands, leave out what stands behind --",
        )  # fmt: skip

    def program(self, side: str, name: str, commit: str, command: Sequence[str]) -> Program:
        """Check a commit out, set it up, and return its program.

        Args:
            side: names it, and its folder: no two have the same.
            name: of the commit, as the user said it.

        Raises `CannotBeBuilt`.
        """
        place = self._made / side
        try:
            _git(
                self._folder, "worktree", "add", "--detach", "--quiet", str(place), commit,
                told=f"{name} cannot be checked out",
            )  # fmt: skip
        except SettingsError as error:
            raise CannotBeBuilt(str(error)) from error
        self._stack.callback(_remove, self._folder, place)
        inside = place / self._below
        if not inside.is_dir():
            raise CannotBeBuilt(f"{name} has no folder {self._below}, in which the command is to run")
        if self._setup is not None:
            _set_up(self._setup, inside, f"the {side} {name}", self._patience)
        return Program(named=f"{name} ({commit[:10]})", command=tuple(command), folder=inside)


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
    with Checkouts(folder, setup=setup, patience=patience) as checkouts:
        commits = [checkouts.commit(name) for name in (base, candidate)]
        programs = [
            checkouts.program(side, name, commit, command)
            for side, name, commit in zip(("base", "candidate"), (base, candidate), commits, strict=True)
        ]
        yield programs[0], programs[1]


def _set_up(setup: str, folder: Path, name: str, patience: float) -> None:
    with tempfile.TemporaryFile() as output:
        ended = run_to_end(("/bin/sh", "-c", setup), folder, output=output.fileno(), timeout=patience)
        if ended.failure:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(size - _TAIL, 0))
            tail = output.read().decode(errors="replace").strip()
            raise CannotBeBuilt(f"{name} cannot be built: {setup!r} {ended.failure}" + (f":\n{tail}" if tail else ""))


def _remove(folder: Path, place: Path) -> None:
    """Best effort: what is left is git's to prune, and the folder goes with the temporary one."""
    with contextlib.suppress(subprocess.SubprocessError, OSError):
        run_git(folder, "worktree", "remove", "--force", str(place))


def _git(folder: Path, *arguments: str, told: str) -> str:
    try:
        done = run_git(folder, *arguments)
    except FileNotFoundError:
        raise SettingsError("git is not installed here: commits can be compared only with it") from None
    except subprocess.TimeoutExpired:
        raise SettingsError(f"{told}: git {arguments[0]} did not answer within {PATIENCE:g} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise SettingsError(f"{told}{f' ({words})' if words else ''}")
    return done.stdout.decode(errors="replace").strip()
