"""`dtf`, and `python -m dtf_lightning`: the one place that knows the commands of both products."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dtf_lightning.cli import main as command_line
from dtf_lightning.elastic.cli import commands as elastic
from dtf_lightning.farm.cli import commands as farm

PRODUCTS = (elastic.register, farm.register)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    return command_line.run(argv, PRODUCTS)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands, for the tests that hold the docs to it."""
    return command_line.build_parser(PRODUCTS)


if __name__ == "__main__":
    sys.exit(main())
