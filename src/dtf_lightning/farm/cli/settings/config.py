"""`dtf farm config`: what a settings file means, before a process is started with it.

Which program a file is for is known by its sections that only one program has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm_command, add_json

if TYPE_CHECKING:
    from dtf_lightning.settings.sections import SettingsFile

PROGRAMS = ("coordinator", "worker")
HIDDEN = "(hidden)"
"""In the place of a secret's value."""


def add_config(actions: Commands) -> None:
    """Add the commands."""
    parser = actions.add_parser("config", help="settings files: check one, show what it means, print their schema")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    check = add_farm_command(commands, "check", _check, "read settings files as the programs do, and say what is wrong")
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    show = add_farm_command(
        commands, "show", _show, "print every setting with its value, and where that is from: file, variable or default"
    )
    show.add_argument("file", nargs="?", type=Path, metavar="FILE", help="without one: what holds if there is none")
    add_json(show)
    for command in (check, show):
        command.add_argument(
            "--for", dest="program", choices=PROGRAMS, help="whose settings (default: told by the sections of the file)"
        )
    schema = add_farm_command(commands, "schema", _schema, "print the JSON Schema of a settings file, for editors")
    schema.add_argument("program", choices=PROGRAMS)


def _settings_of(program: str) -> type[SettingsFile]:
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
    from dtf_lightning.farm.settings.worker import WorkerSettings

    return {"coordinator": CoordinatorSettings, "worker": WorkerSettings}[program]


def _load(file: Path | None, program: str) -> SettingsFile:
    settings = _settings_of(program).load(file)
    for warning in settings.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return settings


def _program_of(file: Path) -> str:
    """Return for which program a file is. Raises `SettingsError` where its sections do not tell."""
    from dtf_lightning.settings.marked_yaml import read_marked

    told = set(read_marked(str(file)).mapping("the settings"))
    known = {
        program: _settings_of(program).sections().keys()
        | {key.partition(".")[0] for key in _settings_of(program).without_effect}
        for program in PROGRAMS
    }
    shared = set.intersection(*map(set, known.values()))
    fitting = [program for program, sections in known.items() if told & (sections - shared)]
    if len(fitting) == 1:
        return fitting[0]
    raise SettingsError(
        f"{file}: its sections ({', '.join(sorted(told)) or 'none'}) do not tell for which program it is; a coordinator has "
        f"{', '.join(sorted(known['coordinator']))}, a worker {', '.join(sorted(known['worker']))}: say --for coordinator "
        "or --for worker"
    )


def _check(arguments: argparse.Namespace) -> int:
    for file in arguments.files:
        program = arguments.program or _program_of(file)
        settings = _load(file, program)
        if program == "coordinator" and (pools := getattr(settings, "scaling").pools):  # noqa: B009  of a coordinator
            print(f"{file}: {_check_pools(settings.path(pools))}")
        number = sum(origin.startswith(str(file)) for origin in settings.origins.values())
        print(f"{file}: good for a {program} ({number} setting{'' if number == 1 else 's'})")
    return DONE


def _check_pools(file: Path) -> str:
    from dtf_lightning.farm.settings.pools import read_pools

    return f"the pools of {file} are good: {', '.join(read_pools(file))}"


def _show(arguments: argparse.Namespace) -> int:
    file = arguments.file
    settings = _load(file, arguments.program or (_program_of(file) if file is not None else PROGRAMS[0]))
    shown = list(_values(settings))
    if arguments.json:
        print(json.dumps([{"key": key, "value": value, "from": origin or "default"} for key, value, origin in shown]))
        return DONE
    before = ""
    for key, value, origin in shown:
        section, _, name = key.partition(".")
        if section != before:
            print(f"{section}:")
            before = section
        line = f"  {name}: {json.dumps(value)}"  # JSON's scalars are YAML's
        print(f"{line:<44}  # {origin}" if origin else line)
    return DONE


def _values(settings: SettingsFile) -> Iterator[tuple[str, Any, str]]:
    for section, cls in settings.sections().items():
        values = getattr(settings, section)
        for one in fields(cls):
            value = _shown(one, getattr(values, one.name))
            key = f"{section}.{one.name}"
            yield key, value, settings.origins.get(key, "")


def _shown(one: Field[Any], value: Any) -> Any:
    if one.metadata["item"] is not None:
        return [{inner.name: _shown(inner, getattr(each, inner.name)) for inner in fields(each)} for each in value]
    return HIDDEN if one.metadata["secret"] and value else value


def _schema(arguments: argparse.Namespace) -> int:
    from dtf_lightning.settings.schema import settings_schema

    print(json.dumps(settings_schema(_settings_of(arguments.program), f"{arguments.program}.yaml"), indent=2))
    return DONE
