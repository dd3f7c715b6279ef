"""These functions choose the name that a node has in its run, and the address at which other nodes reach it."""

from __future__ import annotations

import os
import re
import secrets
import socket

from dtf_lightning.etcd.endpoints import parse_endpoints


def node_id() -> str:
    """Return `<host>-<pid>-<4 hex>`: a name that people can read, and that is never used twice."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0]) or "node"
    return f"{host}-{os.getpid()}-{secrets.token_hex(2)}"


def host_address(local_addr: str | None, endpoint: str) -> str:
    """Return `local_addr`, or else the address from which this machine reaches etcd, where other nodes can answer."""
    if local_addr:
        return local_addr
    for address in parse_endpoints(endpoint).addresses:
        if address.path:
            return "127.0.0.1"
        try:
            family, _, _, _, target = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(target)  # sends nothing: the kernel only picks the route
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return socket.getfqdn()
