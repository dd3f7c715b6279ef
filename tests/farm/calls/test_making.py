"""The process of a call, here in this one: what it tells its worker of the value, or of why there is none."""

from __future__ import annotations

import json
import os
import sys

import pytest

from dtf_lightning import environment
from dtf_lightning.farm.calls.process import main
from dtf_lightning.farm.calls.returned import MAX_ERROR, MAX_TOLD, MAX_VALUE, read_told, without_error
from dtf_lightning.farm.calls.spelling import imported

MODULE = """
import sys

VERSION = "1"

def add(a, b, *, by=0):
    print("adding")
    return a + b + by

def back(value):
    return value

def times(sign, number):
    return sign * number

def fails(text):
    raise ValueError(text)

def leaves(code):
    sys.exit(code)

class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def fails_silently():
    raise Silent
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Makes a call of a function of the module `app` of the task's folder; returns the exit code and what was told."""
    work, results, told = tmp_path / "work", tmp_path / "results", tmp_path / "told"
    work.mkdir()
    results.mkdir()
    (work / "app.py").write_text(MODULE)
    (work / "broken.py").write_text("import nowhere_at_all")
    (work / "bad.py").write_text("1 / 0")
    monkeypatch.chdir(work)
    monkeypatch.setenv(environment.FARM_RETURNED, str(told))
    monkeypatch.setenv(environment.FARM_RESULTS, str(results))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("app", "broken", "bad"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def make(name, *arguments, **named):
        told.unlink(missing_ok=True)
        code = main(imported(name, arguments, named)[4:])
        return code, read_told(told.read_text()), results

    yield make
    for name in ("app", "broken", "bad"):
        sys.modules.pop(name, None)


def test_what_it_returned(call, capsys):
    """By import from the task's folder, with JSON's arguments; what it prints is the task's output."""
    assert call("app:add", 1, 2, by=3)[:2] == (0, {"value": 6})
    assert capsys.readouterr().out == "adding\n"
    for value in (None, True, 1.5, "text", [1, [2]], {"a": {"b": None}}, 10**30):
        assert call("app:back", value)[:2] == (0, {"value": value})
    assert call("os.path:basename", "a/b")[:2] == (0, {"value": "b"})


def test_a_long_value_is_a_file(call):
    code, told, results = call("app:times", "x", MAX_VALUE - 2)
    assert (code, told) == (0, {"value": "x" * (MAX_VALUE - 2)})
    code, told, results = call("app:times", "x", MAX_VALUE)
    assert (code, told) == (0, {"artifact": "value.json"})
    assert json.loads((results / "value.json").read_text()) == "x" * MAX_VALUE


def test_what_json_cannot_hold(call, capsys):
    code, told, _ = call("builtins:set", [1])
    assert code == 1
    assert told["error"].startswith(
        "builtins:set returned a set that JSON cannot hold (set is none of its types): return"
    )
    assert "Traceback" not in capsys.readouterr().err
    code, told, _ = call("builtins:float", "nan")
    assert "returned a float that JSON cannot hold" in told["error"]


def test_it_raises(call, capsys):
    """The traceback is in the output, without frames of this package; type and message are told."""
    assert call("app:fails", "no such file")[:2] == (1, {"error": "ValueError: no such file"})
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert ('app.py", line' in err, "making.py" in err) == (True, False)
    code, told, _ = call("app:fails", "x" * 5000)
    assert (code, len(told["error"])) == (1, MAX_ERROR + 3)
    assert call("app:fails_silently")[:2] == (1, {"error": "Silent"})
    assert call("bad:f")[:2] == (1, {"error": "ZeroDivisionError: division by zero"})
    with pytest.raises(SystemExit, match="7"):
        call("app:leaves", 7)


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("nowhere_at_all:f", (), "nowhere_at_all:f cannot be called: there is no module 'nowhere_at_all' in the task's folder ({here})"),
        ("os.nowhere:f", (), "os.nowhere:f cannot be called: there is no module 'os.nowhere'"),
        ("broken:f", (), "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("app:ad", (), "app:ad cannot be called: there is no 'ad' in {here}/app.py; did you mean 'add'?"),
        ("app:VERSION", (), "app:VERSION cannot be called: it is a str"),
        ("app:add", (1,), "app:add(a, b, *, by=0) does not take the arguments (1): missing a required argument: 'b'"),
    ],
)  # fmt: skip
def test_it_cannot_be_called(call, name, arguments, told):
    code, found, _ = call(name, *arguments)
    assert code == 1
    assert found["error"].startswith(told.format(here=os.getcwd()))


def test_without_a_worker_it_is_printed(call, capsys, monkeypatch):
    monkeypatch.delenv(environment.FARM_RETURNED)
    assert main(imported("os.path:basename", ["a/b"], {})[4:]) == 0
    assert json.loads(capsys.readouterr().out) == {"value": "b"}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"other": 1}', '{"artifact": 1}', "[" * 100_000, '"x"'])
def test_a_task_may_write_anything(text):
    assert read_told(text) == {}


def test_what_is_kept_is_bounded():
    assert without_error({"error": "x", "value": 1}) == '{"value": 1}'
    assert without_error({"error": "x"}) == ""
    assert without_error({"value": "x" * MAX_TOLD}) == ""
