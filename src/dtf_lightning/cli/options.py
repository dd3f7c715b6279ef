"""These functions are shared by commands: they add a command to the parser, and the options for reaching etcd."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dtf_lightning import environment

if TYPE_CHECKING:
    from dtf_lightning.etcd.etcd_store import EtcdStore

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands: TypeAlias = argparse._SubParsersAction


def add_command(
    commands: Commands, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command and return its parser. `command` returns the exit code; `text` is its line in `dtf --help`."""
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=command, name=parser.prog.partition(" ")[2], usage_error=parser.error)
    return parser


def connect_to_etcd(arguments: argparse.Namespace) -> EtcdStore:
    """Connect to the etcd that the options of `add_connection` name. Raises what `EtcdAccess.connect` raises."""
    from dtf_lightning.etcd.access import EtcdAccess

    access = EtcdAccess(
        ca_cert=arguments.ca_cert,
        cert=arguments.cert,
        key=arguments.key,
        server_name=arguments.server_name,
        user=arguments.user,
        password_file=arguments.password_file,
    )
    return access.connect(arguments.endpoint or environment.etcd_endpoint(), quiet=True)


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to reach etcd; their names are those of torchrun's --rdzv-conf."""
    group = parser.add_argument_group("etcd")
    group.add_argument(
        "--endpoint",
        help=f"host:port, several with commas, https://... or unix:PATH "
        f"(default: ${environment.ETCD_ENDPOINT} or {environment.DEFAULT_ETCD_ENDPOINT})",
    )
    for name, text in (
        ("--ca-cert", "certificate (PEM) that signed etcd's; turns TLS on"),
        ("--cert", "client certificate (PEM), with --key"),
        ("--key", "the client certificate's private key (PEM)"),
        ("--password-file", "file with the etcd user's password, with --user"),
    ):
        group.add_argument(name, type=Path, metavar="FILE", help=text)
    group.add_argument("--server-name", metavar="NAME", help="name in etcd's certificate, if not the endpoint's host")
    group.add_argument("--user", help="etcd user, with --password-file")
