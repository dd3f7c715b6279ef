"""`dtf`, and `python -m dtf_lightning`: the one place that knows the commands of both products."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dtf_lightning.cli import main as command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return command_line.run(argv, _products(words))


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands, for the tests that hold the docs to it."""
    return command_line.build_parser(_products(()))


def _products(words: Sequence[str]) -> tuple[command_line.Register, ...]:
    """Return what adds the commands: all of them, but for a command that must start quickly, whose parser knows it and its like only."""
    if list(words[:1]) == ["farm"]:
        from dtf_lightning.farm.cli.tasks import NAMES, register_tasks

        if words[1:] and words[1] in NAMES:
            return (register_tasks,)
    from dtf_lightning.elastic.cli import commands as elastic
    from dtf_lightning.farm.cli import commands as farm

    return elastic.register, farm.register


if __name__ == "__main__":
    sys.exit(main())
