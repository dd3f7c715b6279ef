"""The `dtf` command.

Each command is an adapter: it imports what it needs when it is called (`dtf --help` is instant), asks one function, and
prints. Exit codes: 0 done; 1 it did not work (etcd does not answer or refuses us, the run or node is not there);
2 wrong usage; 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning import cli_checkpoints, cli_watch, environment
from dtf_lightning.cli_progress import Progress
from dtf_lightning.errors import DtfError, SettingsError

if TYPE_CHECKING:
    from dtf_lightning.coordination.status import RunSummary
    from dtf_lightning.etcd.etcd_store import EtcdStore

DONE, FAILED, INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code. A user's mistake is one message on stderr, without a traceback."""
    arguments = build_parser().parse_args(argv)
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


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="dtf",
        description="Lightning runs whose workers join, leave and die while training goes on.",
        epilog="Exit codes: 0 done, 1 it did not work, 2 wrong usage, 130 ended by Ctrl-C.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    etcd = _add(commands, "etcd", _etcd, "run an etcd for this machine until Ctrl-C")
    etcd.add_argument("--port", type=int, default=2379, help="0: a free one (default: %(default)s)")
    etcd.add_argument("--data-dir", type=Path, metavar="DIR", help="keep the data there; without it, it is forgotten")

    status = _add(
        commands, "status", _status, "who is in a run and what it waits for; without RUN, which runs there are"
    )
    status.add_argument("run", nargs="?", metavar="RUN", help="the run's --rdzv-id")
    _add_connection(status)

    watch = _add(
        commands, "watch", _watch, "a live view of a run: nodes, generation, step, loss, what happens; ends with it"
    )
    cli_watch.add_arguments(watch)
    _add_connection(watch)

    drain = _add(commands, "drain", _drain, "ask a node to leave its run gracefully, at the next step boundary")
    drain.add_argument("run", metavar="RUN", help="the run's --rdzv-id")
    drain.add_argument("node", metavar="NODE", help="the node's id as `dtf status` shows it, or its beginning")
    _add_connection(drain)

    audit = _add(commands, "audit", _audit, "which samples a run consumed, missed and repeated, by epoch and worker")
    audit.add_argument("folder", type=Path, metavar="RUN_DIR", help="the run's folder, with ledger/*.jsonl")
    audit.add_argument("--samples", type=int, metavar="N", help="samples per epoch (default: the highest number + 1)")
    audit.add_argument("--json", action="store_true", help="print one JSON object instead of text")

    report = _add(commands, "report", _report, "what happened to a run and what it cost, as an HTML page or as text")
    report.add_argument(
        "run_dir", nargs="+", type=Path, metavar="RUN_DIR",
        help="a run's folder, or one with a single run in dtf/; several: compare",
    )  # fmt: skip
    report.add_argument("--format", choices=("html", "text", "md", "json"), default="html", help="(default: html)")
    report.add_argument("--output", type=Path, metavar="FILE", help="(default: report.html in the first folder)")

    _add_results(commands)

    demo = _add(commands, "demo", _demo, "train on this machine while nodes join, leave and die, and count the losses")
    demo.add_argument("--folder", type=Path, metavar="DIR", help="an empty or new one (default: a new one in runs/)")
    demo.add_argument("--fast", action="store_true", help="fewer steps and epochs")
    demo.add_argument("--keep", action="store_true", help="keep the nodes' output as well")

    checkpoints = _add(
        commands, "checkpoints", cli_checkpoints.checkpoints, "what a run has saved, and whether it is whole"
    )
    cli_checkpoints.add_arguments(checkpoints)
    return parser


def _etcd(arguments: argparse.Namespace) -> int:
    from dtf_lightning.etcd.embedded import serve

    return serve(arguments.port, arguments.data_dir)


def _status(arguments: argparse.Namespace) -> int:
    from dtf_lightning.coordination.status import list_runs, read_status

    with _connect(arguments) as store:
        if arguments.run is not None:
            lines = read_status(store, arguments.run).describe()
        else:
            lines = [_summary(run) for run in list_runs(store)] or ["no runs"]
    print(*lines, sep="\n")
    return DONE


def _watch(arguments: argparse.Namespace) -> int:
    with _connect(arguments) as store:
        return cli_watch.watch(arguments, store)


def _summary(run: RunSummary) -> str:
    phase = run.phase.value if run.phase is not None else "starting"
    return f"{run.run_id}: {phase}, {run.num_nodes} nodes, generation {run.generation}, {run.world_size} workers"


def _drain(arguments: argparse.Namespace) -> int:
    from dtf_lightning.coordination.status import request_drain

    with _connect(arguments) as store:
        node = request_drain(store, arguments.run, arguments.node)
    print(f"{node} was asked to leave run {arguments.run}; watch it go with: dtf status {arguments.run}")
    return DONE


def _audit(arguments: argparse.Namespace) -> int:
    import json

    from dtf_lightning.results.ledger_audit import audit_run

    report = audit_run(arguments.folder, dataset_size=arguments.samples)
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        print(*report.describe(), sep="\n")
    return DONE if report.clean else FAILED


def _report(arguments: argparse.Namespace) -> int:
    from dtf_lightning.results.report import write_report

    with Progress(_amount(*arguments.run_dir)):
        written = write_report(arguments.run_dir, arguments.format, arguments.output)
    print(written)
    return DONE


def _results_sync(arguments: argparse.Namespace) -> int:
    from dtf_lightning.results.store import ResultsStore

    with ResultsStore(arguments.db) as store:
        for run_dir in arguments.run_dir:
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
    from dtf_lightning.results.store import ResultsStore

    if not arguments.db.exists():
        raise SettingsError(f"there is no database {arguments.db}: make it with dtf results sync RUN_DIR")
    with ResultsStore(arguments.db, read_only=True) as store:
        print(store.text(arguments.sql))
    return DONE


def _add_results(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    results = commands.add_parser("results", help="runs in a DuckDB database, for questions in SQL")
    actions = results.add_subparsers(title="commands", required=True, metavar="ACTION")
    sync = _add(actions, "sync", _results_sync, "take in what is new in runs' folders; twice changes nothing")
    sync.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR", help="<default_root_dir>/dtf/<run id>")
    sync.add_argument("--parquet", type=Path, metavar="DIR", help="export every view there, too")
    query = _add(actions, "query", _results_query, "print the answer to one SQL query")
    query.add_argument("sql", metavar="SQL")
    for action in (sync, query):
        action.add_argument("--db", type=Path, default=Path("results.duckdb"), help="(default: %(default)s)")


def _demo(arguments: argparse.Namespace) -> int:
    from dtf_lightning.demo.run import run_demo

    try:
        return run_demo(arguments.folder, fast=arguments.fast, keep=arguments.keep)
    except KeyboardInterrupt:
        print("dtf demo: interrupted; every process that it started has ended", file=sys.stderr)
        return INTERRUPTED


def _connect(arguments: argparse.Namespace) -> EtcdStore:
    from dtf_lightning.etcd.connection import connect

    return connect(
        arguments.endpoint or environment.etcd_endpoint(),
        ca=arguments.ca_cert,
        cert=arguments.cert,
        key=arguments.key,
        server_name=arguments.server_name,
        user=arguments.user,
        password=_password(arguments.password_file),
        quiet=True,
    )


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the password file {path} cannot be read: {error}") from None


def _add_connection(parser: argparse.ArgumentParser) -> None:
    """How to reach etcd; the names are those of torchrun's --rdzv-conf."""
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


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(command=command, name=name)
    return parser


class _Version(argparse.Action):
    """Looks the version up when asked: reading the installed metadata takes longer than all the rest of --help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from dtf_lightning import __version__

        print(f"dtf-lightning {__version__}")
        parser.exit()
