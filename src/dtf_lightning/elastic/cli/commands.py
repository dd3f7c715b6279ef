"""The commands of `dtf` that are about elastic runs."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, FAILED, INTERRUPTED
from dtf_lightning.cli.options import Commands, add_command, add_connection, connect_to_etcd
from dtf_lightning.cli.progress import Progress
from dtf_lightning.database.formats import FORMATS
from dtf_lightning.elastic.cli import checkpoints as checkpoints_command
from dtf_lightning.elastic.cli import watch as watch_command
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    from dtf_lightning.elastic.run.status import RunSummary

_RUN = "the run's folder (<default_root_dir>/dtf/<run id>), one above it, or the run's id"


def register(commands: Commands) -> None:
    """Add them to the parser."""
    status = add_command(
        commands, "status", _status, "who is in a run and what it waits for; without RUN, which runs there are"
    )
    status.add_argument("run", nargs="?", metavar="RUN", help="the run's --rdzv-id")
    add_connection(status)

    watch = add_command(
        commands, "watch", _watch, "a live view of a run: nodes, generation, step, loss, what happens; ends with it"
    )
    watch_command.add_arguments(watch)
    add_connection(watch)

    drain = add_command(commands, "drain", _drain, "ask a node to leave its run gracefully, at the next step boundary")
    drain.add_argument("run", metavar="RUN", help="the run's --rdzv-id")
    drain.add_argument("node", metavar="NODE", help="the node's id as `dtf status` shows it, or its beginning")
    add_connection(drain)

    audit = add_command(
        commands, "audit", _audit, "which samples a run consumed, missed and repeated, by epoch and worker"
    )
    audit.add_argument(
        "folder", nargs="+", type=Path, metavar="RUN",
        help=f"{_RUN}; or the folder of its ledgers; several if its nodes wrote to several folders",
    )  # fmt: skip
    audit.add_argument("--samples", type=int, metavar="N", help="samples per epoch (default: what the ledgers say)")
    audit.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    report = add_command(
        commands, "report", _report, "what happened to a run and what it cost, as an HTML page or as text"
    )
    report.add_argument(
        "run_dir", nargs="+", type=Path, metavar="RUN", help=f"{_RUN}; several: compare",
    )  # fmt: skip
    report.add_argument("--format", choices=("html", "text", "md", "json"), default="html", help="(default: html)")
    report.add_argument("--output", type=Path, metavar="FILE", help="(default: report.html in the first folder)")

    _add_results(commands)

    demo = add_command(
        commands, "demo", _demo, "train on this machine while nodes join, leave and die, and count the losses"
    )
    demo.add_argument("--folder", type=Path, metavar="DIR", help="an empty or new one (default: a new one in runs/)")
    demo.add_argument("--fast", action="store_true", help="fewer steps and epochs")
    demo.add_argument("--keep", action="store_true", help="keep the nodes' output as well")

    checkpoints = add_command(
        commands, "checkpoints", checkpoints_command.checkpoints, "what a run has saved, and whether it is whole"
    )
    checkpoints_command.add_arguments(checkpoints)


def _status(arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.run.status import list_runs, read_status

    with connect_to_etcd(arguments) as store:
        if arguments.run is not None:
            lines = read_status(store, arguments.run).describe()
        else:
            lines = [_summary(run) for run in list_runs(store)] or ["no runs"]
    print(*lines, sep="\n")
    return DONE


def _watch(arguments: argparse.Namespace) -> int:
    with connect_to_etcd(arguments) as store:
        return watch_command.watch(arguments, store)


def _summary(run: RunSummary) -> str:
    phase = run.phase.value if run.phase is not None else "starting"
    return f"{run.run_id}: {phase}, {run.num_nodes} nodes, generation {run.generation}, {run.world_size} workers"


def _drain(arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.run.status import request_drain

    with connect_to_etcd(arguments) as store:
        node = request_drain(store, arguments.run, arguments.node)
    print(f"{node} was asked to leave run {arguments.run}; watch it go with: dtf status {arguments.run}")
    return DONE


def _audit(arguments: argparse.Namespace) -> int:
    import json

    from dtf_lightning.elastic.reports.ledger_audit import audit_run
    from dtf_lightning.elastic.reports.run_folder import find_run

    folders = [folder if any(folder.glob("*.jsonl")) else find_run(folder) for folder in arguments.folder]
    report = audit_run(*dict.fromkeys(folders), dataset_size=arguments.samples)
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        print(*report.describe(), sep="\n")
    return DONE if report.clean else FAILED


def _report(arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.reports.report import write_report
    from dtf_lightning.elastic.reports.run_folder import find_run

    run_dirs = [find_run(place) for place in arguments.run_dir]
    width = shutil.get_terminal_size().columns if arguments.format == "text" and sys.stdout.isatty() else None
    with Progress(_amount(*run_dirs)):
        written = write_report(run_dirs, arguments.format, arguments.output, width=width)
    print(written)
    return DONE


def _results_sync(arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.reports.run_folder import find_run
    from dtf_lightning.elastic.reports.store import ResultsStore

    run_dirs = [find_run(place) for place in arguments.run_dir]
    with ResultsStore(arguments.db) as store:
        for run_dir in run_dirs:
            with Progress(_amount(run_dir)):
                done = store.sync(run_dir)
            print(f"{done.run}: {done.new_lines} new lines from {done.files} files")
            for problem in done.corrupt:
                print(f"passed over: {problem}", file=sys.stderr)
        if arguments.parquet is not None:
            print(f"{len(store.export_parquet(arguments.parquet))} Parquet files in {arguments.parquet}")
    return DONE


def _amount(*run_dirs: Path) -> str:
    """What is to be read, for people who wait."""
    size = sum(path.stat().st_size for run_dir in run_dirs for path in run_dir.glob("events/*.jsonl"))
    return f"{', '.join(run_dir.name for run_dir in run_dirs)}: {size / (1 << 20):.1f} MiB of events"


def _results_query(arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.reports.store import ResultsStore

    if not arguments.db.exists():
        raise SettingsError(f"there is no database {arguments.db}: make it with dtf results sync RUN")
    form = arguments.format or (None if sys.stdout.isatty() else "csv")
    with ResultsStore(arguments.db, read_only=True) as store:
        print(store.text(arguments.sql, form))
    return DONE


def _add_results(commands: Commands) -> None:
    results = commands.add_parser("results", help="runs in a DuckDB database, for questions in SQL")
    actions = results.add_subparsers(title="commands", required=True, metavar="ACTION")
    sync = add_command(actions, "sync", _results_sync, "take in what is new in runs' folders; twice changes nothing")
    sync.add_argument("run_dir", nargs="+", type=Path, metavar="RUN", help=_RUN)
    sync.add_argument("--parquet", type=Path, metavar="DIR", help="export every view there, too")
    query = add_command(actions, "query", _results_query, "print the answer to one SQL query")
    query.add_argument("sql", metavar="SQL")
    query.add_argument(
        "--format", choices=FORMATS,
        help="all rows in this form (default: a box with the first ones on a terminal, else csv)",
    )  # fmt: skip
    for action in (sync, query):
        action.add_argument("--db", type=Path, default=Path("results.duckdb"), help="(default: %(default)s)")


def _demo(arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.demo.run import run_demo

    try:
        return run_demo(arguments.folder, fast=arguments.fast, keep=arguments.keep)
    except KeyboardInterrupt:
        print("dtf demo: interrupted; every process that it started has ended", file=sys.stderr)
        return INTERRUPTED
