"""`dtf farm audit`: whether the files of what was asked for are as they were written."""

from __future__ import annotations

import argparse
import datetime as dt
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm_command, add_json

if TYPE_CHECKING:
    from dtf_lightning.farm.security.audit import Verdict

FILES = "audit-*.jsonl"


def add_audit(actions: Commands) -> None:
    """Add the commands."""
    audit = actions.add_parser("audit", help="the files in which coordinators write down what was asked for")
    commands = audit.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = add_farm_command(
        commands, "verify", _verify, "find lines that were changed, added, moved or removed since they were written"
    )
    command.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help=f"`{FILES}` beside a farm's files (default: those of the farm that `dtf farm up` runs)",
    )
    command.add_argument(
        "--token-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="with the farm's own token; again for one that it had before (default: as of other commands)",
    )
    command.add_argument(
        "--contains",
        metavar="LINK",
        help="also: the line with this link, which `verify` printed at an earlier time, is still there",
    )
    add_json(command)


def _verify(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.home import FarmHome, RunningFarm
    from dtf_lightning.farm.security.audit import audit_key, verify
    from dtf_lightning.farm.tokens import read_token

    home = FarmHome.default()
    folder = home.folder / "files"
    files = list(arguments.files) or sorted(folder.glob(FILES))
    if not files:
        raise SettingsError(f"no {FILES} in {folder}: name the files, which lie in the folder of a farm's files")
    if arguments.contains and len(files) > 1:
        raise SettingsError(f"--contains is about one file, got {len(files)}")
    tokens = arguments.token_file or [home.known_token(RunningFarm.read(home.running))]
    keys = [audit_key(read_token(file)) for file in tokens]
    verdicts = []
    for file in files:
        try:
            verdict = verify(file, keys)
        except OSError as error:
            raise SettingsError(f"cannot read {file}: {error.strerror}") from error
        if arguments.contains and arguments.contains not in verdict.links:
            verdict.broken(f"no line has the link {arguments.contains}: the end was cut off, or it is of another file")
        verdicts.append((file, verdict))
    if arguments.json:
        print(json.dumps([_as_json(file, verdict) for file, verdict in verdicts]))
    else:
        _print(verdicts)
    return FAILED if any(verdict.breaks for _, verdict in verdicts) else DONE


def _as_json(file: Path, verdict: Verdict) -> dict[str, object]:
    told = {name: getattr(verdict, name) for name in ("lines", "unchained", "torn", "first", "last", "link", "breaks")}
    return {"file": str(file), "whole": not verdict.breaks, **told}


def _print(verdicts: Sequence[tuple[Path, Verdict]]) -> None:
    for file, verdict in verdicts:
        times = f" from {_when(verdict.first)} to {_when(verdict.last)}" if verdict.lines else ""
        print(
            f"{file}: {verdict.lines} lines{times}: {'NOT as they were written' if verdict.breaks else 'as they were written'}"
        )
        for told in verdict.breaks:
            print(f"  {told}")
        if verdict.unchained:
            print(f"  the first {verdict.unchained} have no links: an earlier release wrote them")
        if verdict.torn:
            print(
                f"  {verdict.torn} rests of lines that were never written to their end (a full disk, a killed process)"
            )
        if verdict.link:
            print(f"  the last link is {verdict.link}")
            print("  (keep it elsewhere: with --contains it shows later that nothing was cut off up to here)")


def _when(time: float | None) -> str:
    return "?" if time is None else f"{dt.datetime.fromtimestamp(time, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"
