"""`dtf farm report`: a view of the page as one file. `dtf farm health`: what is wrong with a farm, as the page has it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.page.scaling import add_scaling

CRITICAL, WARNING = 1, 3
"""Exit codes of a farm that is not well, beside 0 for one that is."""


def add_page(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    report = add_farm_command(
        actions, "report", _report, "save a view of the farm's page as one file, which needs nothing else"
    )
    report.add_argument(
        "view",
        nargs="?",
        default="/",
        metavar="VIEW",
        help="its address with its filters, such as '/grid?by=plan' or as a browser shows it (default: Now)",
    )
    report.add_argument("--html", type=Path, metavar="FILE", required=True, help="where to; what is there is replaced")
    add_farm(report)
    health = add_farm_command(
        actions,
        "health",
        _health,
        "what is wrong with a farm, and what to do; exit code 1 if it is critical, 3 for a warning",
    )
    add_json(health)
    add_farm(health)
    add_scaling(actions)


def _report(arguments: argparse.Namespace) -> int:
    address = urlsplit(arguments.view)
    if not address.path.startswith("/"):
        raise SettingsError(f"{arguments.view!r} is no view of the page; expected an address such as /grid?by=plan")
    query = dict(parse_qsl(address.query)) | {"format": "html"}
    with connect(arguments) as farm:
        _, chunks = farm.connection.stream(address.path, **query)
        data = b"".join(chunks)
    try:
        arguments.html.write_bytes(data)
    except OSError as error:
        raise SettingsError(f"the report cannot be written: {error}") from error
    print(f"{arguments.html}: {len(data) / 1000:.0f} kB")
    return DONE


def _health(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.health()
    if arguments.json:
        print(json.dumps(told))
    elif not told["findings"]:
        print("healthy: nothing is wrong as far as can be seen from here")
    for one in () if arguments.json else told["findings"]:
        print(f"{one['level']}: {one['subject']}: {one['reason']}")
        print(f"  {one['remedy']}")
    for one in () if arguments.json else told["remedies"]:
        did = "would cordon it (recovery.dry_run)" if one["dry_run"] else f"has cordoned it; to undo it: {one['undo']}"
        print(f"{one['at']}: {one['subject']}: the farm {did}")
    return {"healthy": DONE, "critical": CRITICAL}.get(told["health"], WARNING)
