"""`dtf farm report`: a view of the page as one file."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, connect


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
