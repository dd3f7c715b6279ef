"""Where a coordinator gets the keys of the secrets' store: a file, its settings (from a variable), or a command (a KMS).

Rules that this file guards:
- A file that others may read is refused.
- What a command prints is a key: it is in no error and no log. What it writes to its standard error is told.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.sealing.ring import Ring, new_key, read_ring
from dtf_lightning.whole_files import write_whole

COMMAND_TIMEOUT = 30.0
"""Seconds for a command to print the keys."""
MAX_BYTES = 64 * 1024
OTHERS = 0o077
TOLD = 500
"""Characters of a command's standard error that are told."""


@dataclass(frozen=True, kw_only=True)
class KeySource:
    """One of three places; without any there is no store."""

    file: Path | None = None
    text: str | None = None
    """The keys themselves."""
    command: tuple[str, ...] = ()

    def read(self) -> Ring:
        """Return the keys as they are now. Raises `SettingsError`. Blocks while a command runs."""
        if self.file is not None:
            return read_ring(_of_file(self.file), str(self.file))
        if self.text is not None:
            return read_ring(self.text, "the setting secrets.key")
        if self.command:
            return read_ring(_of_command(self.command), f"what `{self.command[0]}` printed (secrets.key_command)")
        raise SettingsError(
            "this farm keeps no secrets: it has no key to seal them with. Make one with `dtf farm secret new-key FILE`, and name the "
            "file in `secrets.key_file` of every coordinator's coordinator.yaml (or `--secrets-key FILE`)"
        )


def put_new_key(path: Path) -> Ring:
    """Put a new key before those of a file, or make the file; return the keys. Raises `SettingsError`."""
    try:
        before = _of_file(path) if path.exists() else ""
        if before:
            read_ring(before, str(path))  # a file of something else stays as it is
        write_whole(path, f"{new_key()}\n{before}".encode(), durable=True, private=True)
    except OSError as error:
        raise SettingsError(f"no key can be written to {path}: {error.strerror}") from error
    return read_ring(_of_file(path), str(path))


def _of_file(path: Path) -> str:
    try:
        if path.stat().st_mode & OTHERS:
            raise SettingsError(f"others may read the keys in {path}: run `chmod 600 {path}`, and rotate them")
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise SettingsError(f"the file of keys {path} cannot be read: {error.strerror}") from error


def _of_command(command: Sequence[str]) -> str:
    why = ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMMAND_TIMEOUT, check=False
        )
        if done.returncode:
            why = f"it ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-TOLD:]}"
    except subprocess.TimeoutExpired:
        why = f"it took longer than {COMMAND_TIMEOUT:g} s"
    except OSError as error:
        why = str(error.strerror)
    if why:  # raised here: an error of `subprocess` holds what was printed
        raise SettingsError(f"the command of secrets.key_command, `{command[0]}`, gave no key: {why}")
    return done.stdout[:MAX_BYTES].decode("ascii", "replace")
