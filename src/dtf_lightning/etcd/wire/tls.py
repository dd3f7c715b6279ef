"""`Tls` holds the certificates for talking to etcd, as files, checked before anything is sent."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Tls:
    """PEM files for TLS. Raises `SettingsError` for files that are missing, are no certificates or do not fit together."""

    ca: Path | None = None
    """The file of the authorities that vouch for the server. `None`: the public authorities."""
    cert: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    """The name in the server's certificate, where the endpoint has another."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise SettingsError(f"a client {given} for etcd was given without its {missing}: both are needed")
        for role, path in (("CA certificate", self.ca), ("client certificate", self.cert), ("client key", self.key)):
            if path is not None:
                _check_readable(role, path)
        self.context()

    def context(self) -> ssl.SSLContext:
        """Return a context for a handshake with Python's own `ssl`."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            # Python 3.13 is stricter by default than gRPC, which makes the real connection and which this is to explain.
            context.verify_flags &= ~ssl.VerifyFlags.VERIFY_X509_STRICT
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(f"the CA certificate for etcd, {self.ca}, is not a PEM certificate: {error}") from None
        if self.cert is not None:
            try:
                # An encrypted key would make OpenSSL ask for its password on the terminal; grpc cannot use one either.
                context.load_cert_chain(self.cert, self.key, password="")
            except (ssl.SSLError, ValueError) as error:
                raise SettingsError(
                    f"the client certificate {self.cert} and key {self.key} for etcd cannot be used together: "
                    f"{_reason(error)}. Expected two PEM files that belong together, the key without a password"
                ) from None
        return context

    def contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return CA, key and certificate, in the order in which grpc takes them."""
        ca, key, cert = (path.read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return ca, key, cert


def _check_readable(role: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"the {role} for etcd, {path}, cannot be read: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
