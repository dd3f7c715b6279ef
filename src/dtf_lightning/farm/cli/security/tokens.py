"""`dtf farm token create|list|revoke|rotate-keys`: who may talk to the farm."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def add_tokens(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    token = actions.add_parser("token", help="who may talk to the farm, and what each may do")
    kinds = token.add_subparsers(title="commands", required=True, metavar="COMMAND")
    made = add_farm_command(kinds, "create", _create, "make a token for a person, a program, or workers to join with")
    made.add_argument(
        "--role",
        required=True,
        metavar="ROLE",
        help="viewer, developer, ci, worker, operator or admin (docs/security.md)",
    )
    made.add_argument(
        "--project", action="append", default=[], metavar="P", help="limit it to this project; several times"
    )
    made.add_argument(
        "--for",
        dest="life",
        default="30d",
        metavar="TIME",
        help="such as 12h or 90d, at most 366d (default: %(default)s)",
    )
    made.add_argument(
        "--name", dest="named", default="", metavar="NAME", help="whose it is; of a worker's token the worker's name"
    )
    made.add_argument("--uses", type=int, metavar="N", help="of a worker's: so many workers can join with it")
    made.add_argument(
        "--to", type=Path, metavar="FILE", help="write it into a new file, which its owner alone may read"
    )
    made.add_argument("--print", action="store_true", dest="shown", help="print it, where others may see the screen")
    add_json(made)
    add_farm(made)

    listed = add_farm_command(kinds, "list", _list, "the tokens that were made, and the workers that have joined")
    add_json(listed)
    add_farm(listed)

    revoked = add_farm_command(
        kinds, "revoke", _revoke, "make a token good no more, on every coordinator within a second"
    )
    revoked.add_argument("token", metavar="ID", help="of `dtf farm token list`")
    revoked.add_argument("--reason", default="", help="why, for who is refused")
    add_json(revoked)
    add_farm(revoked)

    rotated = add_farm_command(kinds, "rotate-keys", _rotate, "sign tokens with a new key; older tokens stay good")
    rotated.add_argument(
        "--forget", action="store_true", help="refuse all tokens that older keys have signed: after a theft of the keys"
    )
    add_json(rotated)
    add_farm(rotated)


def _create(arguments: argparse.Namespace) -> int:
    if (arguments.to is None) == (not arguments.shown):
        raise SettingsError("say where the token goes: --to FILE, or --print to show it on the screen")
    with connect(arguments) as farm:
        # The file comes first: a token that nobody can keep is not made.
        file = None if arguments.to is None else _new_file(arguments.to)
        try:
            told = farm.create_token(
                arguments.role,
                subject=arguments.named,
                projects=arguments.project,
                seconds=seconds_of(arguments.life),
                uses=arguments.uses,
            )
        except BaseException:
            if file is not None:
                os.close(file)
                arguments.to.unlink()
            raise
    token = told.pop("token")
    if file is not None:
        with os.fdopen(file, "w") as stream:
            stream.write(token + "\n")
    if arguments.json:
        print(json.dumps({**told, "token": token} if file is None else {**told, "file": str(arguments.to)}))
    elif file is None:
        print(token)
    else:
        uses = "" if told["uses_left"] is None else f", for {told['uses_left']} workers to join with"
        print(f"{arguments.to}: the token {told['token_id']}, role {told['role']}{uses}, good until {told['expires']}")
    return DONE


def _new_file(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SettingsError(f"--to {path}: no new file can be made there: {error.strerror}") from error


def seconds_of(text: str) -> float:
    """Return the seconds of a time such as 30d, 12h, 90m or 45s. Raises `SettingsError`."""
    told = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if told is None:
        raise SettingsError(f"--for {text}: expected a number with s, m, h or d, such as 12h or 30d")
    return float(told[1]) * _UNITS[told[2]]


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        tokens = farm.tokens()
    if arguments.json:
        print(json.dumps(tokens))
        return DONE
    rows = [
        (
            one["token_id"],
            one["kind"] if one["uses_left"] is None else f"join, {one['uses_left']} left",
            one["role"],
            one["subject"],
            " ".join(one["projects"]) or "all",
            one["expires"],
            "revoked" if one["revoked"] else "",
        )
        for one in tokens
    ]
    print_table(("ID", "KIND", "ROLE", "NAME", "PROJECTS", "EXPIRES", ""), rows)
    return DONE


def _revoke(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.revoke_token(arguments.token, reason=arguments.reason)
    print(json.dumps(told) if arguments.json else f"{told['token_id']}: revoked")
    return DONE


def _rotate(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.rotate_keys(forget=arguments.forget)
    if arguments.json:
        print(json.dumps(told))
        return DONE
    print(f"{told['key']}: signs from now on; {len(told['keys']) - 1} older keys still verify")
    return DONE
