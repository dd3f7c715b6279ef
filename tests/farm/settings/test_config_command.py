"""`dtf farm config`: what a settings file means, and the variables that win over it."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.settings.config import HIDDEN
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.settings.worker import WorkerSettings
from dtf_lightning.farm.worker.service import main as worker_process
from dtf_lightning.settings.schema import settings_schema

TEXT = {
    "coordinator": "server:\n  port: ${PORT}\nretention:\n  logs: 30d\nhigh_availability:\n  coordinator_id: one\n",
    "worker": "worker:\n  id: w1\n  labels: [fast, 12]\ncoordinator:\n  api_key: ${A_TOKEN}\nexecution:\n  timeout: 1h\n",
}
CLASSES = {"coordinator": CoordinatorSettings, "worker": WorkerSettings}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "not-to-be-seen")
    monkeypatch.setenv("PORT", "9090")

    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("program", "number"), [("coordinator", 3), ("worker", 4)])
def test_a_good_file_is_told_by_its_sections(file, capsys, program, number):
    path = file(TEXT[program])
    assert main(["farm", "config", "check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: good for a {program} ({number} settings)\n"


def test_only_logging_is_both_programs():
    """All other sections of a file tell for which program it is."""
    assert CoordinatorSettings.sections().keys() & WorkerSettings.sections().keys() == {"logging"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server:\n  prot: 1\n", "settings.yaml:2:3: unknown key 'prot' in server; did you mean 'port'?"),
        ("serve:\n  port: 1\n", "its sections (serve) do not tell for which program it is"),
        ("worker:\n  id: w\nserver:\n  port: 1\n", "its sections (server, worker) do not tell"),
        ("worker:\n  cpus: -1\n", "settings.yaml:2:9: cpus must be positive, got -1"),
    ],
)
def test_a_bad_one_is_bad_input(file, capsys, text, said):
    assert main(["farm", "config", "check", str(file(text))]) == 2
    assert said in capsys.readouterr().err


def test_what_has_no_effect_is_a_warning(file, capsys):
    assert main(["farm", "config", "check", str(file("high_availability:\n  quorum_size: 2\n"))]) == 0
    assert "settings.yaml:2: high_availability.quorum_size has no effect here" in capsys.readouterr().err


@pytest.mark.parametrize("program", CLASSES)
def test_what_is_shown_means_the_same(file, capsys, program):
    """It is a file of settings itself, whose values are those of the one that it shows."""
    before = CLASSES[program].load(file(TEXT[program]))
    assert main(["farm", "config", "show", str(file(TEXT[program]))]) == 0
    after = CLASSES[program].load(file(capsys.readouterr().out.replace(HIDDEN, "not-to-be-seen")))
    assert after == before


def test_a_secret_is_not_shown(file, capsys):
    for more in ([], ["--json"]):
        assert main(["farm", "config", "show", *more, str(file(TEXT["worker"]))]) == 0
        told = capsys.readouterr().out
        assert HIDDEN in told
        assert "not-to-be-seen" not in told


def test_where_each_value_is_from(file, capsys, monkeypatch):
    monkeypatch.setenv("WORKER_ID", "w7")
    path = file(TEXT["worker"])
    assert main(["farm", "config", "show", "--json", str(path)]) == 0
    told = {one["key"]: (one["value"], one["from"]) for one in json.loads(capsys.readouterr().out)}
    assert told["worker.id"] == ("w7", "$WORKER_ID")
    assert told["worker.labels"] == (["fast", "12"], f"{path}:3")
    assert told["execution.timeout"] == (3600.0, f"{path}:7")
    assert told["execution.cache_limit"] == (20.0, "default")


def test_variables_win_over_the_file_and_options_over_them(file, monkeypatch):
    """A pod's name is its coordinator's, and all pods have one file."""
    monkeypatch.setenv("COORDINATOR_ID", "pod-3")
    path = file(TEXT["coordinator"])
    assert CoordinatorSettings.load(path).high_availability.coordinator_id == "pod-3"
    given = {"high_availability.coordinator_id": "given"}
    assert CoordinatorSettings.load(path, given).high_availability.coordinator_id == "given"


def test_a_variable_without_effect_is_a_warning(monkeypatch):
    monkeypatch.setenv("HIGH_AVAILABILITY_PEERS", "a:8080,b:8080")
    (warning,) = CoordinatorSettings.load().warnings
    assert warning.startswith("$HIGH_AVAILABILITY_PEERS: high_availability.peers has no effect here: etcd elects")


def test_what_is_wrong_with_an_option_is_not_said_of_the_file(file):
    """The file's value was not looked at."""
    with pytest.raises(SettingsError, match=r"^port must be a port or 0, got 99999"):
        CoordinatorSettings.load(file("server:\n  port: 1\n"), {"server.port": 99999})


def test_a_workers_token_does_not_reach_its_tasks(file, monkeypatch, tmp_path):
    """Neither by the variable that is its own, nor by one that the file names."""
    monkeypatch.setenv("WORKER_API_KEY", "one")
    monkeypatch.setenv("JWT_SECRET", "of a coordinator")
    left, told = [], []
    monkeypatch.setattr(worker_process, "run_worker", lambda options, *_: told.append(options.token))
    command = ["farm", "worker", "--coordinator", "http://127.0.0.1:1", "--folder", str(tmp_path), "--config"]
    for _ in range(2):
        assert main([*command, str(file(TEXT["worker"]))]) == 0
        left.append({"WORKER_API_KEY", "A_TOKEN", "JWT_SECRET"} & os.environ.keys())
    assert told == ["one", "not-to-be-seen"]
    assert left == [{"A_TOKEN"}, set()]


@pytest.mark.parametrize("program", CLASSES)
def test_schema(file, capsys, program):
    """What the programs take is good by the schema, what they refuse for its keys or types is not."""
    jsonschema_rs = pytest.importorskip(
        "jsonschema_rs", reason="jsonschema-rs is not installed: pip install 'dtf-lightning[dev]'"
    )
    assert main(["farm", "config", "schema", program]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == settings_schema(CLASSES[program], f"{program}.yaml")
    checker = jsonschema_rs.Draft202012Validator(schema)
    jsonschema_rs.meta.validate(schema)
    checker.validate(yaml.safe_load(TEXT[program]))
    section, key = {"coordinator": ("server", "port"), "worker": ("worker", "cpus")}[program]
    for wrong in ({"serve": {}}, {section: {"prot": 1}}, {section: {key: "many"}}, {section: [1]}):
        assert not checker.is_valid(wrong), wrong
        with pytest.raises(SettingsError):
            CLASSES[program].load(file(yaml.safe_dump(wrong)))
