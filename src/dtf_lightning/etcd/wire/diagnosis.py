"""`diagnose` finds out why an endpoint does not answer as etcd, by plain sockets: grpc says "failed to connect" to all."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.etcd.endpoints import Address
from dtf_lightning.etcd.wire.tls import Tls

# The start of an HTTP/2 connection: the preface and an empty SETTINGS frame. An HTTP/2 server answers with its own.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS_FRAME = 4
_NO_TLS = "it does not speak TLS: use http:// and no certificates"
_WANTS_TLS = "it hangs up on a connection without TLS: use https:// and give the CA's certificate"


class Trouble(Enum):
    NOBODY = "nothing listens"
    UNREACHABLE = "unreachable"
    CERTIFICATE = "certificate"
    TLS_WANTED = "the server wants TLS"
    TLS_UNKNOWN = "the server does not speak TLS"
    NOT_ETCD = "not etcd"
    SILENT = "silent"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Finding:
    trouble: Trouble
    told: str
    """What was seen, as the end of a sentence that starts with the endpoint."""


def diagnose(address: Address, tls: Tls | None, timeout: float) -> Finding:
    """Connect once and look. Never raises for what the server does; takes at most a few `timeout` seconds."""
    try:
        connection = _connect(address, timeout)
    except ConnectionRefusedError:
        return Finding(Trouble.NOBODY, "nothing listens there (connection refused)")
    except FileNotFoundError:
        return Finding(Trouble.NOBODY, "there is no such socket")
    except socket.gaierror as error:
        return Finding(Trouble.UNREACHABLE, f"the host name cannot be resolved ({error.strerror})")
    except OSError as error:
        return Finding(Trouble.UNREACHABLE, f"it cannot be reached ({error.strerror or error})")
    with connection:
        return _greet_with_tls(connection, address, tls) if tls else _greet(connection)


def _connect(address: Address, timeout: float) -> socket.socket:
    if not address.path:
        return socket.create_connection((address.host, address.port), timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(address.path)
    except BaseException:
        connection.close()
        raise
    return connection


def _greet(connection: socket.socket) -> Finding:
    try:
        connection.sendall(_HTTP2_HELLO)
        answer = connection.recv(64)
    except TimeoutError:
        return Finding(Trouble.SILENT, "it takes connections but says nothing (frozen, or not etcd)")
    except OSError as error:
        return Finding(Trouble.TLS_WANTED, f"{_WANTS_TLS} ({error.strerror})")
    if len(answer) > 3 and answer[3] == _SETTINGS_FRAME:
        return Finding(Trouble.NONE, "it speaks HTTP/2, as etcd does")
    if not answer or answer[:1] == b"\x15" or b"HTTPS server" in answer:
        return Finding(Trouble.TLS_WANTED, _WANTS_TLS)
    if answer.startswith((b"HTTP/1", b"<")):  # old servers answer a request that they do not understand with mere HTML
        line = answer.splitlines()[0].decode(errors="replace")
        return Finding(Trouble.NOT_ETCD, f"it is a plain web server (answered {line!r}), not etcd")
    return Finding(Trouble.NOT_ETCD, f"it answered {answer[:24]!r}, which is not what etcd says")


def _greet_with_tls(connection: socket.socket, address: Address, tls: Tls) -> Finding:
    try:
        context = tls.context()
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(connection, server_hostname=tls.server_name or address.host or "localhost") as secured:
            # With TLS 1.3 the server's verdict on our certificate comes after the handshake.
            secured.sendall(_HTTP2_HELLO)
            answer = secured.recv(64)
    except ssl.SSLCertVerificationError as error:
        return Finding(
            Trouble.CERTIFICATE,
            f"its certificate is not accepted: {error.verify_message}. Check the CA file and the server's name",
        )
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
        if "alert" in reason:
            given = "our client certificate" if tls.cert else "a connection without a client certificate"
            return Finding(Trouble.CERTIFICATE, f"it refuses {given} ({reason})")
        return Finding(Trouble.TLS_UNKNOWN, f"{_NO_TLS} ({reason})")
    except TimeoutError:
        return Finding(Trouble.SILENT, "it takes connections but says nothing (frozen, or not etcd)")
    except OSError as error:
        return Finding(Trouble.TLS_UNKNOWN, f"{_NO_TLS} ({error.strerror})")
    if len(answer) > 3 and answer[3] == _SETTINGS_FRAME:
        return Finding(Trouble.NONE, "it speaks HTTP/2 over TLS, as etcd does")
    return Finding(Trouble.NOT_ETCD, "it speaks TLS, but not what etcd says over it")
