"""Under which names a coordinator is reached, and where it may listen. Pure.

Rules that this file guards:
- Without TLS only this machine's loopback is listened on, unless somebody has written that it shall be otherwise.
- `Host` (and `Origin`) must be a name that this coordinator has: one that its certificate holds, or the one that it
  advertises. A page of another site must not reach a farm through somebody's browser by a name of its own (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from dtf_lightning.errors import SettingsError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")
"""Where one listens on all of a machine's addresses."""


@dataclass(frozen=True, kw_only=True)
class Listening:
    """How a coordinator was told to listen. Raises `SettingsError` for what must not be.

    Args:
        host: an address or a name of this machine.
        advertise: the URL under which others reach it; "" for none.
        tls: whether it has a certificate.
        insecure: whether it may serve others than this machine without TLS.
    """

    host: str
    advertise: str = ""
    tls: bool = False
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.tls and self.insecure:
            raise SettingsError("a certificate and --insecure were given: leave --insecure out, it means `without TLS`")
        if not self.tls and not self.insecure and self.host not in LOOPBACK:
            raise SettingsError(
                f"the host {self.host!r} is not this machine's loopback, and there is no TLS: whoever can read the network "
                "could read tokens, commands and results. Give a certificate (--tls-cert FILE --tls-key FILE; "
                "`dtf farm cert init` and `dtf farm cert issue NAME --host HOST` make one), or write --insecure"
            )
        if self.advertise and scheme_of(self.advertise) not in ("http", "https"):
            raise SettingsError(f"{self.advertise!r} is no address of a farm: expected https://HOST:PORT")
        if self.advertise and self.tls and scheme_of(self.advertise) != "https":
            raise SettingsError(
                f"this coordinator speaks TLS, and advertises {self.advertise}: write https:// in its place"
            )

    @property
    def warning(self) -> str:
        """What everybody should know who looks at this farm; "" for nothing."""
        if not self.insecure or self.host in LOOPBACK:
            return ""
        return (
            f"this coordinator serves {self.host} without TLS (--insecure): whoever can read the network can read tokens, "
            "commands and results"
        )

    def address(self, port: int, certified: Iterable[str]) -> str:
        """Return the URL under which others reach it. Raises `SettingsError` where that cannot be known.

        Args:
            port: on which it listens.
            certified: names and addresses that its certificate holds.
        """
        if self.advertise:
            return self.advertise.rstrip("/")
        names = tuple(certified)
        if not self.tls or (self.host not in EVERYWHERE and holds(names, self.host)):
            if self.host in EVERYWHERE:
                raise SettingsError(
                    f"the host {self.host} stands for every address of this machine: say with --advertise "
                    f"http://HOST:{port} under which one others reach it"
                )
            return f"{'https' if self.tls else 'http'}://{bracketed(self.host)}:{port}"
        concrete = [name for name in names if "*" not in name]
        if not concrete:
            raise SettingsError(
                f"the certificate holds no whole name ({', '.join(names)}): say with --advertise https://HOST:{port} under "
                "which one others reach it"
            )
        return f"https://{bracketed(min(concrete, key=_how_local))}:{port}"

    def own_address(self, port: int, certified: Iterable[str]) -> str:
        """Return as a URL where it listens; where it does not advertise another, that is `address`."""
        if not self.advertise:
            return self.address(port, certified)
        return f"{'https' if self.tls else 'http'}://{bracketed(self.host)}:{port}"

    def serves(self, name: str, certified: Iterable[str]) -> bool:
        """Whether a request may say that it means this host. `certified`: as of `address`."""
        if self.tls:
            own = (*certified, *self._advertised())
        else:
            own = (*LOOPBACK, *((self.host, *self._advertised()) if self.insecure else ()))
        return holds((one for one in own if one not in EVERYWHERE), name)

    def _advertised(self) -> tuple[str, ...]:
        return (hostname(self.advertise),) if self.advertise else ()


def _how_local(name: str) -> tuple[bool, bool]:
    """Names before addresses, and what means this machine alone last."""
    return name in LOOPBACK, _plain(name) != name or _is_address(name)


def holds(names: Iterable[str], name: str) -> bool:
    """Whether a host's name is one of these; `*.lab` stands for one label before `.lab` (RFC 6125)."""
    wanted = _plain(name)
    if not wanted:
        return False
    for one in names:
        told = _plain(one)
        if told == wanted:
            return True
        if told.startswith("*.") and not _is_address(wanted):
            label, _, rest = wanted.partition(".")
            if label and rest == told[2:]:
                return True
    return False


def _plain(name: str) -> str:
    small = name.lower().removesuffix(".")
    return str(ipaddress.ip_address(small)) if _is_address(small) else small


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def bracketed(host: str) -> str:
    """Return a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


def hostname(url: str) -> str:
    """Return the host of a URL; "" for none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def scheme_of(url: str) -> str:
    """Return the scheme of a URL with a host; "" for none."""
    try:
        parts = urlsplit(url)
        return parts.scheme if parts.hostname and (parts.port is None or parts.port > 0) else ""
    except ValueError:
        return ""
