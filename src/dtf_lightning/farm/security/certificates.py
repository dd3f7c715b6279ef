"""A coordinator's certificate: what it holds, and handshakes that follow its files.

Rules that this file guards:
- A new connection is served with the files as they are at that moment; one that is open keeps what it began with.
- Files that cannot be used change nothing: the last good ones stay, and the log says why, once for each change.
- TLS 1.2 at least.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.files import Stamp, stamp_of

log = logging.getLogger(__name__)

DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of a coordinator."""

    cert: Path
    """With the certificates between it and its authority, if there are any."""
    key: Path
    client_ca: Path | None = None
    """The authorities of clients' certificates; `None`: no certificate is asked for."""

    def stamps(self) -> tuple[Stamp, ...]:
        """What changes when a file does."""
        return tuple(stamp_of(path) for path in (self.cert, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a certificate says."""

    names: tuple[str, ...]
    """Hosts for which it is good: names, of which `*.lab` stands for many, and IP addresses."""
    since: float
    until: float
    """From when until when it is good: seconds since the epoch."""

    @classmethod
    def read(cls, path: Path) -> Certificate:
        """Return what the first certificate in a file says. Raises `SettingsError`."""
        try:
            told = x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as error:
            raise SettingsError(f"the certificate {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"{path} holds no certificate; expected PEM (-----BEGIN CERTIFICATE-----)") from error
        try:
            alternatives = told.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            alternatives = x509.SubjectAlternativeName([])
        return cls(
            names=(
                *(name.lower() for name in alternatives.get_values_for_type(x509.DNSName)),
                *(str(address) for address in alternatives.get_values_for_type(x509.IPAddress)),
            ),
            since=told.not_valid_before_utc.timestamp(),
            until=told.not_valid_after_utc.timestamp(),
        )

    def problem(self, now: float) -> str:
        """Return why it is no use at a time, in seconds since the epoch; "" if it is."""
        if not self.names:
            return "it holds no host's name (subjectAltName), and every client refuses such a one"
        if now > self.until:
            return f"it has expired {(now - self.until) / DAY:.1f} days ago"
        if now < self.since:
            return f"it is not good before {(self.since - now) / DAY:.1f} days from now: is this machine's clock right?"
        return ""


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context for handshakes with clients. Raises `SettingsError` for files that cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for what, path in (("certificate", files.cert), ("private key", files.key), ("client authority", files.client_ca)):
        if path is not None:
            _check_readable(what, path)
    try:
        # A key with a password would make OpenSSL ask for it on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(
            f"the certificate {files.cert} and the key {files.key} cannot be used together: {reason_of(error)}. Expected two "
            "PEM files that belong together, the key without a password"
        ) from None
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_OPTIONAL  # who needs one is said by what it asks for
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"the authority of clients' certificates, {files.client_ca}, is no PEM certificate: {reason_of(error)}"
            ) from None
    return context


class ReloadingContext(ssl.SSLContext):
    """Hands every new connection to a context of the files as they are. To be used on one thread.

    asyncio and uvicorn take a context when they begin to listen, and ask it for each connection by `wrap_bio`. Loading
    other files into the same context would leave it between two certificates where they do not fit together.

    Args:
        files: of the coordinator.

    Raises `SettingsError` for files that cannot be used at the start.
    """

    def __new__(cls, files: TlsFiles) -> ReloadingContext:
        """See the class."""
        del files
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = files.stamps()
        self._context = server_context(files)
        self._certificate = Certificate.read(files.cert)

    @property
    def asks_for_certificates(self) -> bool:
        """Whether clients have an authority."""
        return self._files.client_ca is not None

    @property
    def certificate(self) -> Certificate:
        """That of the newest connection: each looks at the files, so that a request need not."""
        return self._certificate

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """See `ssl.SSLContext`."""
        self._follow()
        return self._context.wrap_bio(*arguments, **named)

    def _follow(self) -> None:
        stamps = self._files.stamps()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            context, certificate = server_context(self._files), Certificate.read(self._files.cert)
        except SettingsError as error:
            log.error("the new TLS files are not used, new connections get the old ones: %s", error)
            return
        self._context, self._certificate = context, certificate
        log.info("new connections get the new certificate %s (%s)", self._files.cert, ", ".join(certificate.names))


def _check_readable(what: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"the {what} {path} cannot be read: {error.strerror}") from None


def reason_of(error: Exception) -> str:
    """Return OpenSSL's words for what was wrong."""
    return (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
