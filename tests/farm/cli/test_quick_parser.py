"""The commands that must start quickly have a parser of their own: it is the same as that of all commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dtf_lightning.__main__ import _products, build_parser
from dtf_lightning.cli import main as command_line
from dtf_lightning.farm.cli.tasks import NAMES, register_tasks

ALL = build_parser()


def helped(parser, words, capsys) -> str:
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    return "".join(capsys.readouterr())


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_the_same_options_in_both(name, capsys):
    assert _products(["farm", name]) == (register_tasks,)
    quick = command_line.build_parser(_products(["farm", name]))
    told = helped(quick, ["farm", name, "--help"], capsys)
    assert told == helped(ALL, ["farm", name, "--help"], capsys)
    assert f"usage: dtf farm {name} " in told


@pytest.mark.parametrize(
    "words", [(), ("farm",), ("farm", "--help"), ("farm", "rum"), ("farm", "up"), ("status", "run")]
)
def test_whatever_else_is_asked_knows_all_commands(words):
    assert len(_products(words)) == 2


def test_a_run_imports_nothing_of_the_other_commands():
    """Each would cost every `dtf farm run` its import."""
    program = "import sys, dtf_lightning.__main__ as m; m.command_line.build_parser(m._products(['farm', 'run'])); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in told if name.startswith("dtf_lightning.")}
    assert "dtf_lightning.farm.cli.run" in ours
    assert not {name for name in ours if name.startswith("dtf_lightning.elastic")}
    assert not ours & {
        "dtf_lightning.farm.cli.commands",
        "dtf_lightning.farm.cli.serve",
        "dtf_lightning.database.formats",
    }
