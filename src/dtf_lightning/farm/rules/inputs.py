"""What a task's input is named by. Pure.

| reference | what lies at its place in the workspace |
|---|---|
| `sha256:DIGEST` | a file that was sent to the farm, by the SHA-256 of its bytes |
| `tree:DIGEST` | a folder that was sent to the farm, by the SHA-256 of its archive |
| `https://...#sha256=DIGEST`, also `http://`, `file://` | the file that its worker reads there |
| `git+URL@COMMIT` | the files of a commit, by all 40 digits of it, without submodules |

Rule: a reference says what comes, to the last bit. So the same reference is the same input on every worker and for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.errors import SettingsError

MAX_INPUTS = 100
"""Of one task."""

_DIGEST = "[0-9a-f]{64}"
_STORED = re.compile(f"(sha256|tree):({_DIGEST})")
_URL = re.compile(rf"((?:https?|file)://\S+)#sha256=({_DIGEST})")
_GIT = re.compile(r"git\+((?:https?|ssh|file)://[^\s@]+(?:@[^\s@]+)?)@([0-9a-f]{40})")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)


class InputKind(Enum):
    """Where an input comes from."""

    FILE = "sha256"
    FOLDER = "tree"
    URL = "url"
    GIT = "git"


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One input."""

    kind: InputKind
    digest: str = ""
    """SHA-256 in hexadecimal, of a file, an archive, or what the URL gives."""
    url: str = ""
    commit: str = ""


def read_input(reference: str) -> Input:
    """Return what a reference means. Raises `SettingsError` for one that means nothing."""
    if match := _STORED.fullmatch(reference):
        return Input(kind=InputKind(match[1]), digest=match[2])
    if match := _URL.fullmatch(reference):
        return Input(kind=InputKind.URL, url=match[1], digest=match[2])
    if match := _GIT.fullmatch(reference):
        return Input(kind=InputKind.GIT, url=match[1], commit=match[2])
    raise SettingsError(
        f"{reference!r} is no input; expected https://HOST/FILE#sha256=DIGEST (64 hexadecimal digits), "
        "git+https://HOST/REPOSITORY@COMMIT (all 40 digits), or sha256:DIGEST of a file that the farm has"
    )


def is_local(reference: str) -> bool:
    """Whether a reference is the path of a file or folder of whoever submits."""
    return not _SCHEME.match(reference)


def check_place(place: str) -> None:
    """Raise `SettingsError` unless an input may lie at this place in the task's folder."""
    parts = place.split("/")
    if not place or place.startswith("/") or "\0" in place or any(part in ("", ".", "..") for part in parts):
        raise SettingsError(f"an input's place {place!r} must be a path below the task's folder, without '.' and '..'")


def stored_digests(references: Iterable[str]) -> list[str]:
    """Return the digests of those that lie in the farm's files. Raises `SettingsError` for one that means nothing."""
    inputs = map(read_input, references)
    return [one.digest for one in inputs if one.kind in (InputKind.FILE, InputKind.FOLDER)]
