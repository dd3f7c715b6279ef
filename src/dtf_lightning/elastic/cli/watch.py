"""`dtf watch`: the adapter between the command line and `dtf_lightning.elastic.reports.watch`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtf_lightning.elastic.reports.watch import Screen
    from dtf_lightning.etcd.etcd_store import EtcdStore

from dtf_lightning.cli.main import DONE, FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `dtf watch`, beside those that say where etcd is."""
    parser.add_argument("run", metavar="RUN", help="the run's --rdzv-id")
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="the run's folder, or one above it, for steps and losses (default: what is found below this folder)",
    )
    parser.add_argument(
        "--interval", type=_seconds, default=0.5, metavar="S", help="seconds between two looks (default: %(default)s)"
    )
    parser.add_argument("--plain", action="store_true", help="lines, as without a terminal")


def watch(arguments: argparse.Namespace, store: EtcdStore) -> int:
    """0 when the run has finished, 1 when it was aborted."""
    from dtf_lightning.elastic.events import ELASTIC_EVENTS
    from dtf_lightning.elastic.reports import watch
    from dtf_lightning.elastic.reports.run_folder import found_or_later, known_run
    from dtf_lightning.elastic.run.status import read_status
    from dtf_lightning.events.tail import EventTail

    run_dir = known_run(arguments.run) if arguments.run_dir is None else found_or_later(arguments.run_dir)
    tail = EventTail(ELASTIC_EVENTS, run_dir) if run_dir is not None else None
    run = watch.WatchedRun(arguments.run, lambda: read_status(store, arguments.run), tail)
    return DONE if watch.watch(run, _screen(arguments.plain), interval=arguments.interval) else FAILED


def _screen(plain: bool) -> Screen:
    from dtf_lightning.elastic.reports.watch import PlainScreen

    if plain or not sys.stdout.isatty():
        return PlainScreen(sys.stdout)
    try:
        from dtf_lightning.elastic.reports.watch_screen import LiveScreen
    except ImportError:
        print("dtf watch: plain lines; for a live screen: pip install 'dtf-lightning[rich]'", file=sys.stderr)
        return PlainScreen(sys.stdout)
    return LiveScreen(sys.stdout)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be 0.05 to 3600 seconds, got {text}")
    return seconds
