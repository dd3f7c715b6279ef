"""A worker's secrets: one file for each, in a folder that its owner alone may read.

    <folder>/HF_TOKEN        the value of the secret HF_TOKEN, and of the variable in which a task finds it

Rules that this file guards:
- A value goes from its file into the memory of the worker and of its keeper, and into the environment of the task that named
  it: never to a coordinator, into the record, a list or a log.
- What others may read is not offered, and what is too short to be masked in output is not either.
- The farm knows the names alone: they are labels of the worker (`rules.needs.SECRET`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.needs import LONGEST_SECRET, SECRET
from dtf_lightning.farm.worker.keeper.masking import SHORTEST

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_BYTES = LONGEST_SECRET
OTHERS = 0o077


class SecretFiles:
    """Stateless: each question reads the files. `None`: a worker without secrets."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def labels(self) -> tuple[str, ...]:
        """Return the labels of the secrets that can be given, sorted. What cannot is logged, with the reason."""
        if self._folder is None or not self._folder.is_dir():
            return ()
        found = []
        for path in sorted(self._folder.iterdir()):
            if not NAME.fullmatch(path.name):
                continue
            try:
                self._read(path.name)
            except SettingsError as error:
                log.warning("%s", error)
            else:
                found.append(SECRET + path.name)
        return tuple(found)

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """Return name -> value. Raises `SettingsError` for one that cannot be given, without its value."""
        return {name: self._read(name) for name in names}

    def _read(self, name: str) -> str:
        if self._folder is None or not NAME.fullmatch(name):
            raise SettingsError(f"this worker has no secret {name!r}")
        path, why, value = self._folder / name, "", ""
        try:
            if (self._folder.stat().st_mode | path.stat().st_mode) & OTHERS:
                why = f"others may read it; run `chmod 700 {self._folder}` and `chmod 600 {path}`"
            else:
                value = path.read_bytes().decode().removesuffix("\n")
        except OSError as error:
            why = str(error.strerror)
        except UnicodeDecodeError:
            why = "it is no UTF-8"
        if why:  # raised here: an error of decoding shows what could not be decoded
            raise SettingsError(f"the secret {name} in {path} is not offered: {why}")
        if not SHORTEST <= len(value.encode()) <= MAX_BYTES or "\0" in value:
            raise SettingsError(
                f"the secret {name} in {path} is not offered: it must have {SHORTEST} to {MAX_BYTES} bytes, fewer could not "
                "be masked in output, and no NUL"
            )
        return value
