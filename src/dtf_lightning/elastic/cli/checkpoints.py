"""`dtf checkpoints FOLDER`: look at what `BestCheckpoints` has saved, verify it, prune it, compare two."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dtf_lightning.cli.progress import Progress
from dtf_lightning.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from dtf_lightning.elastic.checkpoints.manifest import Loaded
    from dtf_lightning.elastic.checkpoints.record import Record
    from dtf_lightning.elastic.checkpoints.storage.interface import Storage

from dtf_lightning.cli.main import DONE, FAILED

ACTIONS = ("list", "verify", "prune", "diff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="a path, or a URL such as s3://bucket/run7; FOLDER and ACTION in any order"
    )
    parser.add_argument(
        "action",
        nargs="?",
        default="list",
        metavar="ACTION",
        help="list (default): metrics, sizes, integrity; verify: read every byte; prune: keep only the best and the "
        "most recent; diff A B: which tensors differ, by how much",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="for diff: two checkpoints, as list shows them")
    parser.add_argument("--run", help="only this run's, where several share the folder")
    pruning = parser.add_argument_group("prune")
    pruning.add_argument("--best", type=int, default=2, metavar="N", help="of the metric (default: %(default)s)")
    pruning.add_argument("--recent", type=int, default=3, metavar="M", help="(default: %(default)s)")
    pruning.add_argument("--monitor", metavar="METRIC", help="without it, --best keeps nothing")
    pruning.add_argument("--mode", choices=("min", "max"), default="min", help="which is better (default: %(default)s)")
    pruning.add_argument("--dry-run", action="store_true", help="show what would go, remove nothing")
    comparing = parser.add_argument_group("diff")
    comparing.add_argument("--trust", action="store_true", help="let the files' pickles run code, if they need it")


def checkpoints(arguments: argparse.Namespace) -> int:
    """Run the command. Raises `DtfError` for what does not work."""
    from dtf_lightning.elastic.checkpoints.storage.opening import open_storage

    if arguments.action not in ACTIONS and arguments.folder in ACTIONS:
        arguments.folder, arguments.action = arguments.action, arguments.folder
    if arguments.action not in ACTIONS:
        arguments.usage_error(f"{arguments.action!r} is none of the actions {', '.join(ACTIONS)}")
    storage = open_storage(arguments.folder)
    if arguments.action != "diff" and arguments.names:
        raise SettingsError(f"{arguments.action} takes no names; they were {' '.join(arguments.names)}")
    try:
        if not storage.names():
            raise SettingsError(
                f"there are no checkpoints in {storage.url}: it does not exist, or is empty. Expected the folder that "
                "BestCheckpoints(dirpath=...) was given; without one it is <default_root_dir>/checkpoints"
            )
        if arguments.action == "diff":
            return _diff(storage, arguments)
        runs = _runs(storage, arguments.run)
        if arguments.action == "prune":
            return _prune(storage, runs, arguments)
        return _list(storage, runs, loud=arguments.action == "list")
    except OSError as error:
        raise CheckpointError(f"{storage.url} cannot be read: {error}") from error


def _runs(storage: Storage, run: str | None) -> dict[str, Loaded]:
    from dtf_lightning.elastic.checkpoints.reader import read_runs

    runs = read_runs(storage)
    if run is not None and run not in runs:
        raise SettingsError(f"there is no run {run!r} in {storage.url}; there are {', '.join(runs) or 'none'}")
    return {name: loaded for name, loaded in runs.items() if run in (None, name)}


def _list(storage: Storage, runs: dict[str, Loaded], *, loud: bool) -> int:
    from dtf_lightning.elastic.checkpoints.reader import unlisted, verify

    num_bad = 0
    listed: list[Record] = []
    for run, loaded in runs.items():
        records = loaded.manifest.records if loaded.manifest else ()
        listed += records
        verdicts = []
        with Progress(f"run {run}: reading checkpoints", sum(record.size for record in records)) as progress:
            for record in records:
                verdicts.append(verify(storage, record))
                progress.advance(record.size)
        num_bad += sum(not verdict.intact for verdict in verdicts) + len(loaded.damaged)
        if loud:
            print(f"run {run}:")
            rows = [_row(record, verdict.integrity.value) for record, verdict in zip(records, verdicts, strict=True)]
            _print_table([["step", "epoch", "saved", "size", "integrity", "name", "metrics"], *rows])
        for record, verdict in zip(records, verdicts, strict=True):
            if not verdict.intact:
                print(f"{record.name}: {verdict.integrity.value}: {verdict.reason}")
        for slot in loaded.damaged:
            print(f"{slot}")
    for name in unlisted(storage, listed):
        print(f"{name}: in no manifest")
    if not loud or not listed:
        print(f"{len(listed)} checkpoints, {num_bad} damaged or missing")
    return FAILED if num_bad else DONE


def _row(record: Record, integrity: str) -> list[str]:
    from dtf_lightning.clock import utc_text
    from dtf_lightning.elastic.checkpoints.summary import size_text

    metrics = " ".join(f"{name}={value:.6g}" for name, value in sorted(record.metrics.items()))
    suspect = " suspect" if record.suspect else ""
    return [
        str(record.step),
        str(record.epoch),
        utc_text(record.saved_at),
        size_text(record.size),
        integrity + suspect,
        record.name,
        metrics,
    ]


def _print_table(rows: list[list[str]]) -> None:
    from dtf_lightning.elastic.checkpoints.summary import columns

    for line in columns(rows):
        print(f"  {line}")


def _prune(storage: Storage, runs: dict[str, Loaded], arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
    from dtf_lightning.elastic.checkpoints.retention import AnyOf, BestN, LatestN, Policy
    from dtf_lightning.elastic.checkpoints.summary import size_text

    policies: list[Policy] = [LatestN(arguments.recent)]
    if arguments.monitor:
        policies.append(BestN(arguments.best, arguments.monitor, arguments.mode))
    policy = AnyOf(tuple(policies))
    removed: list[Record] = []
    for run, loaded in runs.items():
        if arguments.dry_run:
            records = loaded.manifest.records if loaded.manifest else ()
            kept = policy.keep(records)
            removed += [record for record in records if record.name not in kept]
        else:
            removed += CheckpointFolder(storage, run, policy, recover=False).prune(policy)
    verb = "would remove" if arguments.dry_run else "removed"
    for record in removed:
        print(f"{verb} {record.name} (step {record.step}, {size_text(record.size)})")
    total = size_text(sum(record.size for record in removed))
    print(f"{verb} {len(removed)} checkpoints, {total}")
    return DONE


def _diff(storage: Storage, arguments: argparse.Namespace) -> int:
    from dtf_lightning.elastic.checkpoints.compare import compare
    from dtf_lightning.elastic.checkpoints.formats import load_tensors

    if len(arguments.names) != 2:
        raise SettingsError(f"diff compares two checkpoints; {len(arguments.names)} were named")
    a, b = (load_tensors(storage.location(name), trust=arguments.trust) for name in arguments.names)
    differences = compare(a, b)
    rows = [
        [
            difference.name,
            difference.what,
            f"largest {difference.largest:.3g}",
            f"relative {difference.relative:.3g}",
            f"{difference.num_differing} of {difference.num_elements}",
        ]
        if difference.what == "values"
        else [difference.name, difference.what, "", "", ""]
        for difference in differences
    ]
    if rows:
        _print_table(rows)
    print(f"{len(differences)} of {len(a.keys() | b.keys())} tensors differ")
    return FAILED if differences else DONE
