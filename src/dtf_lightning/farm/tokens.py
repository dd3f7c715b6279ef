"""The farm's token: in a file that its owner alone may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from dtf_lightning.errors import SettingsError


def make_token(path: Path) -> str:
    """Return the token in this file, which is made, for its owner alone, if it is not there. Raises `SettingsError`."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_token(path)
    except OSError as error:
        raise SettingsError(
            f"the farm's token is not there, and cannot be made in {path}: {error.strerror}. Make it where that can be, and put it "
            "there, with the mode 600"
        ) from error
    token = secrets.token_urlsafe(32)
    with os.fdopen(file, "w") as stream:
        stream.write(token + "\n")
    return token


def read_token(path: Path) -> str:
    """Return the token in a file. Raises `SettingsError` if there is none, or if others may read the file."""
    try:
        mode = path.stat().st_mode
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the farm's token cannot be read from {path}: {error}") from error
    if mode & 0o077:
        raise SettingsError(f"others may read the farm's token in {path}: run `chmod 600 {path}`")
    if not token:
        raise SettingsError(f"the file {path} holds no token")
    return token
