"""Endpoints of etcd: `host:port`, lists with commas, `http://`, `https://`, `unix:`."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from dtf_lightning.errors import SettingsError

DEFAULT_PORT = 2379
_FORMS = "host:port, http://host:port, https://host:port or unix:/path/to/socket; several are separated by commas"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of one server: either `host` and `port`, or `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def target(self) -> str:
        """The server's name as grpc wants it, which messages show too."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return self.target


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All servers of one etcd cluster, at least one, in the order given and without repetition."""

    addresses: tuple[Address, ...]
    secure: bool | None
    """`True` for https://, `False` for http://, `None` where nothing was said: TLS if a certificate is given."""

    def __str__(self) -> str:
        return ",".join(address.target for address in self.addresses)

    @property
    def on_this_machine(self) -> bool:
        """Whether every server is reached by a unix socket or the loopback interface."""
        return all(address.path or _is_loopback(address.host) for address in self.addresses)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_endpoints(text: str) -> Endpoints:
    """Return the endpoints in a text; a missing port is 2379. Raises `SettingsError` that names the part that is wrong."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise SettingsError(f"no etcd endpoint given (got {text!r}): expected {_FORMS}")
    addresses: dict[Address, None] = {}
    schemes: dict[str, str] = {}
    for part in parts:
        scheme, address = _parse_one(part)
        addresses[address] = None
        if not address.path:
            schemes.setdefault(scheme, part)
    if len(schemes) > 1:
        raise SettingsError(
            f"etcd endpoints {text!r} mix {' and '.join(scheme or 'no scheme' for scheme in schemes)}: "
            "the members of one cluster are reached all with TLS (https://) or all without (http://)"
        )
    secure = {"https": True, "http": False}.get(next(iter(schemes), ""))
    return Endpoints(tuple(addresses), secure)


def _parse_one(part: str) -> tuple[str, Address]:
    if part.startswith("unix:"):
        path = part.removeprefix("unix:")
        path = path.removeprefix("//") if path.startswith("//") else path
        if not path:
            raise _bad(part, "the path of the socket is missing")
        return "unix", Address(path=path)
    scheme, separator, _ = part.partition("://")
    if separator and scheme not in ("http", "https"):
        raise _bad(part, f"unknown scheme {scheme!r}")
    if "@" in part:
        # The part may hold a password: it is not shown.
        raise SettingsError(
            "an etcd endpoint holds a user name or password ('@'): pass them as `user` and `password`, "
            "so that they show up in no process list and no log"
        )
    if not separator and part.count(":") > 1 and not part.startswith("["):
        raise _bad(part, f"an IPv6 address needs brackets, as in [{part}]:{DEFAULT_PORT}")
    try:
        url = urlsplit(part if separator else f"//{part}")
        host, port = url.hostname, url.port
    except ValueError as error:
        raise _bad(part, str(error)) from None
    if not host or any(character.isspace() for character in host):
        raise _bad(part, "the host is missing" if not host else "the host holds a blank")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise _bad(part, f"nothing may follow the port, got {part[part.index(url.netloc) + len(url.netloc) :]!r}")
    if port == 0:
        raise _bad(part, "port 0 cannot be connected to")
    return scheme if separator else "", Address(host=host, port=port or DEFAULT_PORT)


def _bad(part: str, reason: str) -> SettingsError:
    return SettingsError(f"etcd endpoint {part!r} cannot be used: {reason}; expected {_FORMS}")
