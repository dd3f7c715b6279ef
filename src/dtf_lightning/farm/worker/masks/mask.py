"""`Mask`: an attempt's secrets are replaced in what it has left, before anything of that goes out.

Rules that this file guards:
- A file stays as the task has left it, perhaps in a folder of somebody: what goes out is a copy, where there is a secret in it.
- Files of text are looked at: those without a NUL in their first 8 KiB, as git tells text. Others go out as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.farm.worker.keeper.masking import Masker

PIECE = 1 << 20
LOOKED_AT = 8192
"""Bytes by which text is told from other files."""


class Mask:
    """Stateless. Without secrets it changes nothing."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets = tuple(secrets)

    def text(self, told: str) -> str:
        """Return a text without the secrets."""
        if not self._secrets:
            return told
        masker = Masker(self._secrets)
        data = told.encode(errors="surrogateescape")
        return (masker.add(data) + masker.end()).decode(errors="replace")

    def file(self, path: Path, copy: Path) -> Path:
        """Return a file without the secrets: the one that there is, or a copy made at `copy`. Raises `OSError`."""
        if not self._secrets:
            return path
        masker = Masker(self._secrets)
        with path.open("rb") as source:
            piece = source.read(PIECE)
            if b"\0" in piece[:LOOKED_AT]:
                return path
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with copy.open("wb") as target:
                while piece:
                    target.write(masker.add(piece))
                    piece = source.read(PIECE)
                target.write(masker.end())
        if masker.num_masked:
            return copy
        copy.unlink()
        return path
