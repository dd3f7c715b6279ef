"""`EtcdAccess` is how etcd lets a client in: certificates, a user and its password. torchrun and `dtf` share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.connection import connect

if TYPE_CHECKING:
    from dtf_lightning.etcd.etcd_store import EtcdStore


@dataclass(frozen=True, kw_only=True)
class EtcdAccess:
    """Paths and names as users give them; the fields are named like `--rdzv-conf`'s keys and the options of `dtf`."""

    ca_cert: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None
    user: str | None = None
    password_file: str | Path | None = None

    def connect(self, endpoint: str, *, quiet: bool = False) -> EtcdStore:
        """Return a store on the etcd at `endpoint`.

        Raises what `dtf_lightning.etcd.connect` raises, and `SettingsError` for a password file that cannot be read.
        """
        return connect(
            endpoint,
            ca=self.ca_cert,
            cert=self.cert,
            key=self.key,
            server_name=self.server_name,
            user=self.user,
            password=None if self.password_file is None else read_password(self.password_file),
            quiet=quiet,
        )


def read_password(path: str | Path) -> str:
    """Return the password in a file that holds nothing else. Raises `SettingsError` for a file that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"the password file {path} cannot be read: {error}; it holds the etcd user's password and nothing else"
        ) from None
