"""The commits between a good and a bad one, as a bisection takes them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.git import run_git
from dtf_lightning.farm.verdicts.bisection import weight_of

MAX_COMMITS = 5000
_MARK = "\x1e"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit."""

    digest: str
    subject: str
    merge: bool = False
    weight: float = 1.0
    """How likely it is the culprit beforehand, up to a factor."""

    @property
    def named(self) -> str:
        """For people."""
        return f"{self.digest[:10]} ({self.subject})"


def commits_between(folder: Path, good: str, bad: str) -> list[Commit]:
    """Return the good commit and those after it up to the bad one, in order, along the line of first parents.

    Of a branch that was merged there is the merge alone. Raises `SettingsError` for what is no commit of the repository that
    `folder` belongs to, a good commit that the bad one's line does not come from, equal ones, and too many.
    """
    if _git(folder, "rev-parse", "--show-toplevel") is None:
        raise SettingsError(
            f"{folder} belongs to no git repository (or git is not installed): a bisection needs its commits"
        )
    digests = []
    for name in (good, bad):
        found = _git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if found is None:
            raise SettingsError(f"{name!r} is no commit, branch or tag here")
        digests.append(found.strip())
    if digests[0] == digests[1]:
        raise SettingsError(f"{good} and {bad} are the same commit: there is nothing between them")
    told = _git(
        folder, "log", "--first-parent", "--reverse", "--diff-merges=first-parent", "--name-only",
        f"--format={_MARK}%H%x00%P%x00%s%x00", f"{digests[0]}..{digests[1]}",
    )  # fmt: skip
    after = [_commit(text) for text in (told or "").split(_MARK) if text.strip()]
    parents = {commit.digest: parent for commit, parent in after}
    if not after or parents[after[0][0].digest] != digests[0]:
        raise SettingsError(
            f"{good} is not on the line of {bad}'s first parents, so that the commits between them stand in no row; name the "
            f"commit where they part: git merge-base {good} {bad}"
        )
    if len(after) > MAX_COMMITS:
        raise SettingsError(
            f"{len(after)} commits lie between {good} and {bad}, {MAX_COMMITS} are allowed: name nearer ones"
        )
    subject = (_git(folder, "show", "--no-patch", "--format=%s", digests[0]) or "").strip()
    return [Commit(digest=digests[0], subject=subject), *(commit for commit, _ in after)]


def _commit(text: str) -> tuple[Commit, str]:
    digest, parents, subject, files = text.split("\0", 3)
    names = parents.split()
    paths = [line for line in files.splitlines() if line]
    return Commit(digest=digest, subject=subject, merge=len(names) > 1, weight=weight_of(paths)), names[
        0
    ] if names else ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = run_git(folder, *arguments)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
