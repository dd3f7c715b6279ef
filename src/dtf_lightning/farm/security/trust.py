"""What a client of a farm trusts, and what is wrong in plain words where it does not.

Rules that this file guards:
- A coordinator's certificate is always verified, its name too; nothing switches that off.
- What waiting does not mend (an unknown authority, a wrong name, an expired certificate, plain text where TLS is spoken) is
  told at once with what to do, and is not mistaken for a farm that is away.
"""

from __future__ import annotations

import functools
import socket
import ssl
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import BadStatusLine
from pathlib import Path
from urllib.parse import urlsplit

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.files import Stamp, stamp_of

PROBE_TIMEOUT = 2.0
"""Seconds for a look whether TLS is spoken somewhere."""
# OpenSSL's codes, from x509_vfy.h.
_TOO_EARLY, _EXPIRED = 9, 10
_UNKNOWN = (7, 18, 19, 20, 21)
_OTHER_NAME = (62, 64)


@dataclass(frozen=True, kw_only=True)
class Trust:
    """By which files a client and its farm know each other. Raises `SettingsError` for a certificate without its key."""

    ca: Path | None = None
    """The authorities of the coordinators' certificates, PEM. `None`: those that this machine's system knows."""
    cert: Path | None = None
    """The client's own certificate, PEM, for farms that ask for one."""
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise SettingsError(f"a client {given} for the farm was given without its {missing}: both are needed")

    def context(self) -> ssl.SSLContext:
        """Return a context for handshakes, with the files as they are now. Raises `SettingsError`."""
        stamps = tuple(stamp_of(path) for path in (self.ca, self.cert, self.key) if path is not None)
        return _context(self, stamps)


@functools.lru_cache(maxsize=16)
def _context(trust: Trust, stamps: tuple[Stamp, ...]) -> ssl.SSLContext:
    del stamps  # other files, another context
    try:
        context = ssl.create_default_context(cafile=trust.ca)
    except OSError as error:
        if isinstance(error, ssl.SSLError):
            raise SettingsError(f"{trust.ca} holds no certificate of an authority; expected PEM") from None
        raise SettingsError(
            f"the certificate of the farm's authority, {trust.ca}, cannot be read: {error.strerror}"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust.cert is not None:
        try:
            context.load_cert_chain(trust.cert, trust.key, password="")
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"the client certificate {trust.cert} and the key {trust.key} cannot be used: {error}. Expected two PEM "
                "files that belong together, the key without a password"
            ) from None
    return context


class WireFaults:
    """Notes how the coordinators of one farm cannot be spoken with, for one client.

    Args:
        trust: of the client.
    """

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._faulty: set[str] = set()
        self._mute: Counter[str] = Counter()
        self._found: dict[str, str | None] = {}
        """Why connections are closed without a word, where that was looked at."""

    def answered(self) -> None:
        """A coordinator has answered."""
        self._faulty.clear()
        self._mute.clear()
        self._found.clear()

    def failed(self, url: str, error: BaseException, *, look: bool = True) -> str | None:
        """Note that a coordinator could not be spoken with; returns what is wrong if waiting does not mend it.

        `look`: where one has closed the connection without a word, and again, look why. That may take `PROBE_TIMEOUT`.
        """
        told = explain(error, url, self._trust)
        if told is None and look and is_mute(error):
            self._mute[url] += 1
            if self._mute[url] == 2:
                self._found[url] = self._look(url)
            told = self._found.get(url)
        if told is not None:
            self._faulty.add(url)
        else:
            self._faulty.discard(url)
        return told

    def _look(self, url: str) -> str | None:
        if url.startswith("http://"):
            return f"{url}: TLS is spoken there: write https:// in its place" if speaks_tls(url) else None
        if self._trust.cert is not None and hangs_up(url, self._trust):
            return _refused_client(url, self._trust)
        return None

    def hopeless(self, urls: Iterable[str]) -> bool:
        """Whether each of these coordinators last failed in a way that waiting does not mend."""
        return self._faulty.issuperset(urls)


def is_mute(error: BaseException) -> bool:
    """Whether a connection was closed without an answer, as it is where another protocol is spoken."""
    return any(
        isinstance(one, ConnectionResetError | BrokenPipeError | BadStatusLine | EOFError) for one in _all(error)
    )


def speaks_tls(url: str) -> bool:
    """Whether TLS is spoken at an address, with whatever certificate."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is sent over it
    try:
        with (
            socket.create_connection((parts.hostname or "", parts.port or 80), PROBE_TIMEOUT) as line,
            context.wrap_socket(line, server_hostname=parts.hostname),
        ):
            return True
    except (OSError, ValueError):
        return False


def hangs_up(url: str, trust: Trust) -> bool:
    """Whether a coordinator ends a connection on which it has seen our certificate, and nothing was asked yet.

    That is how a certificate is refused in TLS 1.3: the client's part of the handshake is over by then, and asyncio's
    servers close without sending the alert.
    """
    parts = urlsplit(url)
    try:
        line = socket.create_connection((parts.hostname or "", parts.port or 443), PROBE_TIMEOUT)
    except OSError:
        return False
    with line:
        try:
            with trust.context().wrap_socket(line, server_hostname=parts.hostname) as secure:
                return not secure.recv(1)
        except TimeoutError:
            return False
        except (ssl.SSLError, ConnectionError):
            return True
        except OSError:
            return False


def explain(error: BaseException, url: str, trust: Trust) -> str | None:
    """Return in plain words what is wrong with TLS; `None` if it is something else."""
    for one in _all(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return _refused_certificate(one, url, trust)
        if isinstance(one, ssl.SSLError):
            told = (one.reason or str(one)).upper()
            if "WRONG_VERSION_NUMBER" in told or "HTTP_REQUEST" in told or "PACKET_LENGTH" in told:
                return (
                    f"{url}: no TLS is spoken there: write http:// in its place, or give that coordinator a certificate"
                )
            if "CERTIFICATE_REQUIRED" in told or "UNKNOWN_CA" in told or "BAD_CERTIFICATE" in told:
                return _refused_client(url, trust)
            if "CERTIFICATE_EXPIRED" in told:
                return f"{url}: it says that our certificate {trust.cert} has expired: issue a new one"
            if "PROTOCOL_VERSION" in told or "UNSUPPORTED_PROTOCOL" in told:
                return f"{url}: it speaks no TLS 1.2 or newer"
    return None


def _refused_certificate(error: ssl.SSLCertVerificationError, url: str, trust: Trust) -> str:
    host, why = urlsplit(url).hostname, error.verify_message
    if error.verify_code in _UNKNOWN:
        known = f"not the one in {trust.ca}" if trust.ca else "none that this machine knows"
        return (
            f"{url}: the authority of its certificate is {known} ({why}): give the certificate of the farm's authority with "
            "--ca FILE or $DTF_FARM_CA (`dtf farm cert init` makes it as ca.pem)"
        )
    if error.verify_code in _OTHER_NAME:
        return (
            f"{url}: its certificate does not hold the name {host} ({why}): reach it under a name that it holds, or give it "
            f"one that does (`dtf farm cert issue NAME --host {host}`)"
        )
    if error.verify_code == _EXPIRED:
        return (
            f"{url}: its certificate has expired: issue a new one (`dtf farm cert issue`), or set this machine's clock"
        )
    if error.verify_code == _TOO_EARLY:
        return f"{url}: its certificate is not good yet: are the clocks of both machines right?"
    return f"{url}: its certificate is not accepted: {why}"


def _refused_client(url: str, trust: Trust) -> str:
    if trust.cert is None:
        return f"{url}: it asks for a client certificate: give --client-cert FILE and --client-key FILE"
    return f"{url}: it does not take the client certificate {trust.cert}: is that of the authority that it trusts?"


def _all(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it came from."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        yield one
        one = one.__cause__ or one.__context__
