"""`dtf farm cert`: a small certificate authority for a lab."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm_command

if TYPE_CHECKING:
    from dtf_lightning.farm.security.authority import Issued


def add_cert(actions: Commands) -> None:
    """Add the commands."""
    cert = actions.add_parser("cert", help="certificates for a farm on several machines, by an authority of its own")
    commands = cert.add_subparsers(title="commands", required=True, metavar="COMMAND")
    init = add_farm_command(commands, "init", _init, "make an authority: ca.pem for everybody, ca.key for nobody else")
    init.add_argument(
        "--name", dest="named", default="dtf farm", help="of the authority, for people (default: %(default)s)"
    )
    init.add_argument("--days", type=float, default=3650.0, help="for which it is good (default: %(default)g)")
    _add_folder(init)
    issue = add_farm_command(commands, "issue", _issue, "make a certificate, for a coordinator or for a client")
    issue.add_argument("issued", nargs="+", metavar="NAME", help="of the files NAME.pem and NAME.key; several times")
    issue.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="HOST",
        help="further name or IP address, besides NAME, under which the coordinator is reached; several times",
    )
    issue.add_argument(
        "--client", action="store_true", help="for a client, such as a worker, in place of a coordinator"
    )
    issue.add_argument("--days", type=float, default=397.0, help="for which it is good (default: %(default)g)")
    issue.add_argument("--replace", action="store_true", help="put it in the place of the one that is there")
    _add_folder(issue)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where they lie (default: certificates/ in the farm's home)"
    )


def _folder(arguments: argparse.Namespace) -> Path:
    from dtf_lightning.farm.home import FarmHome

    if arguments.folder is not None:
        return Path(arguments.folder)
    home = FarmHome.default()
    home.make()
    return home.folder / "certificates"


def _init(arguments: argparse.Namespace) -> int:
    import datetime as dt

    from dtf_lightning.farm.security.authority import make_authority

    made = make_authority(_folder(arguments), name=arguments.named, days=arguments.days, now=dt.datetime.now(dt.UTC))
    print(f"authority {made.cert}, good until {made.until:%Y-%m-%d}: give it to all machines (--ca, $DTF_FARM_CA)")
    print(f"its key {made.key}: whoever has it can make certificates; keep it, and give it to nobody")
    return DONE


def _issue(arguments: argparse.Namespace) -> int:
    import datetime as dt

    from dtf_lightning.farm.security.authority import issue

    if arguments.client and arguments.host:
        raise SettingsError("--host is for coordinators: a client's certificate names no host")
    if arguments.host and len(arguments.issued) > 1:
        raise SettingsError("--host is for one certificate: issue one NAME at a time with it")
    now = dt.datetime.now(dt.UTC)
    for name in arguments.issued:
        made = issue(
            _folder(arguments),
            name,
            hosts=[name, *(host for host in arguments.host if host != name)],
            client=arguments.client,
            days=arguments.days,
            now=now,
            replace=arguments.replace,
        )
        print(_said(made))
    return DONE


def _said(made: Issued) -> str:
    whom = f"for {', '.join(made.hosts)}" if made.hosts else "for a client"
    return f"certificate {made.cert} {whom}, good until {made.until:%Y-%m-%d}; its key: {made.key}"
