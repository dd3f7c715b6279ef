"""`run` is the `dtf` command: its parser, its exit codes, and the commands that belong to no product.

A product adds its commands by a function `register(commands)`; `dtf_lightning.__main__` brings them together. Each
command is an adapter: it imports what it needs when it is called (so that `dtf --help` is fast), calls one function, and
prints the result.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dtf_lightning.cli.options import Commands, add_command
from dtf_lightning.errors import DtfError

DONE, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes: success; failure (etcd does not answer or refuses access, the run or node does not exist); Ctrl-C."""

Register = Callable[[Commands], None]
"""Function that adds one product's commands to the parser."""


def run(argv: Sequence[str] | None, products: Sequence[Register]) -> int:
    """Run the command and return its exit code. A user's mistake is one message on stderr, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where the terminal's encoding is not UTF-8, some signs become "?"
    arguments = build_parser(products).parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except DtfError as error:
        print(f"dtf {arguments.name}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `dtf status | head`
        sys.stderr.close()
        return FAILED


def build_parser(products: Sequence[Register]) -> argparse.ArgumentParser:
    """Return the parser of all commands and their options."""
    parser = argparse.ArgumentParser(
        prog="dtf",
        description="Lightning runs whose workers join, leave and die while training goes on.",
        epilog="Exit codes: 0 done, 1 it did not work, 2 wrong usage, 130 ended by Ctrl-C.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    etcd = add_command(commands, "etcd", _etcd, "run an etcd for this machine until Ctrl-C")
    etcd.add_argument("--port", type=int, default=2379, help="0: a free one (default: %(default)s)")
    etcd.add_argument("--data-dir", type=Path, metavar="DIR", help="keep the data there; without it, it is forgotten")
    for register in products:
        register(commands)
    return parser


def _etcd(arguments: argparse.Namespace) -> int:
    from dtf_lightning.etcd.server.embedded import serve

    return serve(arguments.port, arguments.data_dir)


class _Version(argparse.Action):
    """Look the version up only on request: reading the installed metadata takes longer than all the rest of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from dtf_lightning import __version__

        print(f"dtf-lightning {__version__}")
        parser.exit()
