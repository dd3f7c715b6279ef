"""Logs as JSON: one line a record, whatever is in it; by the settings of both programs."""

from __future__ import annotations

import json
import logging

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.farm.json_logs import FORMATS, JsonFormatter
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.settings.worker import WorkerSettings


def record(message: str, *arguments: object, exc_info=None) -> logging.LogRecord:
    return logging.LogRecord("a.b", logging.WARNING, "f.py", 1, message, arguments, exc_info)


def test_a_line_has_everything():
    told = json.loads(JsonFormatter({"coordinator": "c0"}).format(record("%s has gone", "w1")))
    assert (told["message"], told["level"], told["logger"], told["coordinator"]) == (
        "w1 has gone",
        "warning",
        "a.b",
        "c0",
    )
    assert told["time"].endswith("Z")
    assert "exception" not in told


def test_it_is_one_line_whatever_is_in_it():
    """Ends of lines, signs of other alphabets, bytes that were no text, an exception."""
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        line = JsonFormatter({}).format(
            record("a\nb \u2028 \udcff %s", "ü", exc_info=(type(error), error, error.__traceback__))
        )
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == "a\nb \u2028 \udcff ü"
    assert "ValueError: two\nlines" in json.loads(line)["exception"]


@pytest.mark.parametrize("settings", [CoordinatorSettings, WorkerSettings])
def test_which_formats_there_are(settings, tmp_path):
    file = tmp_path / "x.yaml"
    for form in FORMATS:
        file.write_text(f"logging: {{format: {form}}}")
        assert settings.load(file).logging.format == form
    file.write_text("logging: {format: xml}")
    with pytest.raises(Exception, match=r"x\.yaml:1:19: format must be text or json, got 'xml'"):
        settings.load(file)


def test_a_section_of_both_programs_tells_not_for_which_a_file_is(tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_text("logging: {format: json}\n")
    assert main(["farm", "config", "check", str(file)]) == 2
    assert "do not tell for which program it is" in capsys.readouterr().err
    file.write_text("logging: {format: json}\nhealth: {report_interval: 60}\n")
    assert main(["farm", "config", "check", str(file)]) == 0
    assert "good for a worker (2 settings)" in capsys.readouterr().out
