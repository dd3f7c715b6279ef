"""Secrets of handlers: each in a file that holds it and nothing else, read anew for each use, so that it can be changed."""

from __future__ import annotations

from pathlib import Path

from dtf_lightning.errors import SettingsError


def read_secret(file: Path) -> bytes:
    """Return what a file holds, without blanks and ends of lines around it. Raises `SettingsError` for one that holds nothing."""
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"cannot read the secret_file {file}: {error.strerror}") from error
    if not secret:
        raise SettingsError(f"the secret_file {file} is empty")
    return secret
