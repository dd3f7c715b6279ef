"""`dtf farm secret`: values that the farm keeps for tasks which name them, and the keys with which it seals them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table


def add_secrets(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    secret = actions.add_parser("secret", help="values that the farm keeps, sealed, for tasks which name them")
    kinds = secret.add_subparsers(title="commands", required=True, metavar="COMMAND")
    made = add_farm_command(kinds, "set", _set, "keep a secret; its value is read from standard input")
    made.add_argument("name", metavar="NAME", help="of the variable in which a task finds it")
    made.add_argument("--from", dest="file", type=Path, metavar="FILE", help="read the value from a file")
    removed = add_farm_command(kinds, "remove", _remove, "forget a secret")
    removed.add_argument("name", metavar="NAME")
    for command in (made, removed):
        command.add_argument("--project", default="default", help="whose tasks get it (default: %(default)s)")
        add_farm(command)
    listed = add_farm_command(kinds, "list", _list, "the secrets' names, and who set each; no values")
    listed.add_argument("--project", help="only of this one")
    rotated = add_farm_command(kinds, "rotate", _rotate, "seal all secrets with the coordinators' newest key")
    for command in (listed, rotated):
        add_json(command)
        add_farm(command)
    key = add_farm_command(kinds, "new-key", _new_key, "make a file of keys for coordinators, or put a new key first")
    key.add_argument("file", type=Path, metavar="FILE", help="which its owner alone may read")


def _set(arguments: argparse.Namespace) -> int:
    value = _value(arguments.file, arguments.name)
    with connect(arguments) as farm:
        told = farm.set_secret(arguments.name, value, project=arguments.project)
    print(f"{told['name']}: kept for the project {told['project']}, sealed with the key {told['key']}")
    return DONE


def _value(file: Path | None, name: str) -> str:
    """Return what is to be kept, without the line's end. Raises `SettingsError`."""
    try:
        if file is None and sys.stdin.isatty():
            import getpass

            return getpass.getpass(f"value of {name} (it is not shown): ")
        data = sys.stdin.buffer.read() if file is None else file.read_bytes()
        return data.decode().removesuffix("\n")
    except OSError as error:
        raise SettingsError(f"--from {file}: it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        pass  # raised below: an error of decoding shows what could not be decoded
    raise SettingsError(f"the value of {name} is no UTF-8: write it as base64, and let the task decode it")


def _remove(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        farm.remove_secret(arguments.name, project=arguments.project)
    print(f"{arguments.name}: forgotten by the project {arguments.project}")
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.secrets(arguments.project)
    if arguments.json:
        print(json.dumps(told))
        return DONE
    rows = [(one["project"], one["name"], f"{one['changed'][:16]}", one["by"], one["key"]) for one in told]
    print_table(("PROJECT", "NAME", "SET (UTC)", "BY", "KEY"), rows)
    return DONE


def _rotate(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.rotate_secrets()
    if arguments.json:
        print(json.dumps(told))
    else:
        print(f"{told['resealed']} secrets were sealed anew, with the key {told['key']}")
        for failed in told["failed"]:
            print(f"warning: {failed}", file=sys.stderr)
    return FAILED if told["failed"] else DONE


def _new_key(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.security.sealing.sources import put_new_key

    ring = put_new_key(arguments.file)
    older = f", before {len(ring.ids) - 1} older ones that still open" if len(ring.ids) > 1 else ""
    print(f"{arguments.file}: the key {ring.ids[0]} seals from now on{older}")
    if older:
        print("  put the file on every coordinator's machine, then run `dtf farm secret rotate`")
    return DONE
