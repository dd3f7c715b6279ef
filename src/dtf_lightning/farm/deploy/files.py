"""Rendered files: what they hold, what they run, and how they are put into a folder.

Rules that this file guards:
- A target's files go into a folder all or none; one that is there with another content is not overwritten unless told.
- Names stay inside the folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dtf_lightning.errors import SettingsError
from dtf_lightning.whole_files import write_whole


@dataclass(frozen=True, kw_only=True)
class FarmCommand:
    """A command line of `dtf farm`, word by word."""

    words: tuple[str, ...]
    """After `dtf`."""

    def line(self, program: str = "dtf") -> str:
        """As a POSIX shell reads it."""
        return shlex.join([program, *self.words])


@dataclass(frozen=True, kw_only=True)
class RenderedFile:
    """One file of a target."""

    name: str
    """In the target's folder, with `/`."""
    text: str
    executable: bool = False
    windows: bool = False
    """Lines end with CR and LF."""

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        assert parts, self.name
        assert ".." not in parts, self.name
        assert not self.name.startswith("/"), self.name
        assert self.text.endswith("\n"), self.name

    @property
    def data(self) -> bytes:
        """As it is written."""
        return (self.text.replace("\n", "\r\n") if self.windows else self.text).encode()


def write_files(folder: Path, files: Sequence[RenderedFile], *, force: bool = False) -> list[Path]:
    """Write them; return where they lie. Raises `SettingsError` where something else is there, and `OSError`."""
    places = [folder / file.name for file in files]
    assert len(set(places)) == len(places)
    for place, file in zip(places, files, strict=True):
        try:
            other = place.exists() and place.read_bytes() != file.data
        except OSError as error:
            raise SettingsError(f"{place} cannot be looked at: {error.strerror}") from error
        if other and not force:
            raise SettingsError(
                f"{place} is there and has another content, perhaps changes of yours: name another folder, or overwrite it with --force"
            )
    for place, file in zip(places, files, strict=True):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, file.data)
            place.chmod(0o755 if file.executable else 0o644)
        except OSError as error:
            raise SettingsError(f"{place} cannot be written: {error.strerror}") from error
    return places
