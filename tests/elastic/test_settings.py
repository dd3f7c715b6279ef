"""Settings: checks, the two ways in, and the page that documents them."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dtf_lightning.elastic.settings import KEYS, AgentSettings, ElasticSettings
from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.fields import setting_docs

DOCS = Path(__file__).parents[2] / "docs"


def elastic(**fields) -> ElasticSettings:
    return ElasticSettings(**{"min_nodes": 1, "max_nodes": 4, **fields})


def test_defaults_are_allowed():
    """Nothing but the number of nodes needs to be said."""
    settings = AgentSettings(elastic=elastic())
    assert settings.mode == "auto"
    assert settings.elastic.stability_window == 0.2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_nodes": 0}, "min_nodes must be at least 1, got 0"),
        ({"min_nodes": 5}, r"min_nodes \(5\) must not exceed max_nodes \(4\).*--nnodes=MIN:MAX"),
        ({"min_nodes": 1.5}, "min_nodes must be a whole number, got 1.5"),
        ({"max_nodes": True}, "max_nodes must be a whole number, got True"),
        ({"stability_window": -1.0}, "stability_window must not be negative, got -1 s"),
        ({"stability_window": float("nan")}, "stability_window must be a finite number, got nan"),
        ({"max_wait": float("inf")}, "max_wait must be a finite number, got inf"),
        ({"max_wait": 0.1}, r"max_wait \(0.1 s\) caps stability_window \(0.2 s\).*raise max_wait or lower"),
        ({"initial_window": 30.0}, r"max_wait \(10 s\) caps initial_window \(30 s\)"),
        ({"heartbeat_interval": 0.0}, "heartbeat_interval must be positive, got 0 s"),
        ({"heartbeat_timeout": 3.0}, r"must exceed three heartbeats \(3 x heartbeat_interval = 3 s\)"),
        ({"rescale_timeout": 10.0}, r"rescale_timeout \(10 s\) must exceed heartbeat_timeout \(10 s\)"),
        ({"failure_window": 0.0}, "failure_window must be positive"),
        ({"max_consecutive_failures": -1}, "max_consecutive_failures must not be negative"),
        ({"failure_tolerance": 0.0}, "failure_tolerance must be positive.*max_consecutive_failures=0"),
    ],
)
def test_elastic_checks(wrong, message):
    """Each says what was got, what was expected, and what to do."""
    with pytest.raises(SettingsError, match=message):
        elastic(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "alive"}, "mode must be one of live, restart, auto, got 'alive'"),
        ({"lease_ttl": 1.0}, "lease_ttl must be at least 2 s"),
        ({"grace_period": 0.1}, r"grace_period \(0.1 s\) must exceed stability_window \(0.2 s\)"),
        ({"attach_timeout": 0}, "attach_timeout must be positive"),
        ({"mesh": "yes"}, "mesh must be True or False"),
        ({"cert": "c.pem"}, "cert and key go together: got cert, but no key"),
        ({"key": "k.pem"}, "cert and key go together: got key, but no cert"),
        ({"user": "u"}, "user and password_file go together: got user, but no password_file"),
    ],
)
def test_agent_checks(wrong, message):
    """The same for an agent's own settings."""
    with pytest.raises(SettingsError, match=message):
        AgentSettings(elastic=elastic(), **wrong)


def test_settings_errors_are_value_errors():
    """A user's `except ValueError` catches them."""
    with pytest.raises(ValueError, match="min_nodes"):
        elastic(min_nodes=-1)


# --- the command line ------------------------------------------------------------------------------------------------


def test_rdzv_conf():
    """torchrun hands over strings, and a `timeout` of its own."""
    settings = AgentSettings.from_rdzv_conf(
        2,
        3,
        {
            "timeout": 900,
            "stability_window": "0.5",
            "max_consecutive_failures": "3",
            "mesh": "off",
            "mode": "auto",
            "ca_cert": "/etc/ca.pem",
        },
    )
    assert (settings.elastic.min_nodes, settings.elastic.max_nodes) == (2, 3)
    assert settings.elastic.stability_window == 0.5
    assert settings.elastic.max_consecutive_failures == 3
    assert settings.mesh is False
    assert settings.mode == "auto"
    assert settings.ca_cert == "/etc/ca.pem"


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"stabilty_window": "1"}, r"--rdzv-conf: unknown key 'stabilty_window' \(did you mean 'stability_window'\?\)"),
        ({"last_call_timeout": "1"}, r"unknown key 'last_call_timeout' \(did you mean 'stability_window'\?\)"),
        ({"cacert": "x"}, r"\(did you mean 'ca_cert'\?\)"),
        ({"xyzzy": "1"}, "unknown key 'xyzzy'; known keys: attach_timeout, "),
        ({"elastic": "1"}, "unknown key 'elastic'"),
        ({"min_nodes": "1"}, "min_nodes comes from --nnodes=MIN:MAX"),
        ({"max_wait": "soon"}, "--rdzv-conf: max_wait must be a number of seconds, got 'soon'"),
        ({"max_consecutive_failures": "2.5"}, "must be a whole number of rescales, got '2.5'"),
        ({"mesh": "maybe"}, "mesh must be true or false, got 'maybe'"),
        ({"lease_ttl": "1"}, "--rdzv-conf: lease_ttl must be at least 2 s"),
    ],
)
def test_rdzv_conf_refuses(conf, message):
    """Unknown keys with the nearest known one, values that do not parse, and settings that cannot work."""
    with pytest.raises(SettingsError, match=message):
        AgentSettings.from_rdzv_conf(1, 2, conf)


def test_only_torchruns_own_key_is_ignored():
    """What torchrun adds by itself passes; nothing else does."""
    assert AgentSettings.from_rdzv_conf(1, 2, {"timeout": 900}) == AgentSettings.from_rdzv_conf(1, 2, {})
    with pytest.raises(SettingsError, match="unknown key 'rank'"):
        AgentSettings.from_rdzv_conf(1, 2, {"rank": 0})


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_yaml(write):
    """All keys of both classes, in one flat mapping."""
    path = write("min_nodes: 2\nmax_nodes: 4\nstability_window: 1\nmesh: false\nuser: u\npassword_file: /p\n")
    settings = AgentSettings.from_yaml(path)
    assert settings.elastic == elastic(min_nodes=2, stability_window=1.0)
    assert (settings.mesh, settings.user, settings.password_file) == (False, "u", "/p")


def test_the_command_line_wins_over_its_file(write):
    """`config` names a file with the same keys."""
    path = write("lease_ttl: 7\ngrace_period: 99\n")
    settings = AgentSettings.from_rdzv_conf(1, 2, {"config": str(path), "lease_ttl": "8"})
    assert (settings.lease_ttl, settings.grace_period, settings.config) == (8.0, 99.0, str(path))


def test_a_file_may_repeat_the_nodes_but_not_contradict(write):
    """--nnodes says how many."""
    path = write("min_nodes: 2\nmax_nodes: 4\n")
    assert AgentSettings.from_rdzv_conf(2, 4, {"config": str(path)}).elastic.max_nodes == 4
    with pytest.raises(SettingsError, match=r"min_nodes is 2 in .*run.yaml but --nnodes says 1"):
        AgentSettings.from_rdzv_conf(1, 4, {"config": str(path)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "min_nodes: 1\nmax_nodes: 2\nlease_tll: 5\n",
            r"run.yaml: unknown key 'lease_tll' \(did you mean 'lease_ttl'\?\)",
        ),
        ("min_nodes: 1\n", r"run.yaml: max_nodes is missing"),
        ("- a\n", r"run.yaml: expected a mapping of settings .* got list"),
        ("a: [", r"settings file .*run.yaml is not YAML"),
        ("min_nodes: one\nmax_nodes: 2\n", r"run.yaml: min_nodes must be a whole number of nodes, got 'one'"),
        ("min_nodes: 3\nmax_nodes: 2\n", r"run.yaml: min_nodes \(3\) must not exceed max_nodes \(2\)"),
        ("min_nodes: 1\nmax_nodes: 2\nconfig: other.yaml\n", "unknown key 'config'"),
        ("", "min_nodes is missing"),
    ],
)
def test_yaml_refuses(write, text, message):
    """Every error names the file."""
    with pytest.raises(SettingsError, match=message):
        AgentSettings.from_yaml(write(text))


def test_a_missing_file():
    """Names the path."""
    with pytest.raises(SettingsError, match=r"cannot read the settings file /nowhere/run\.yaml"):
        AgentSettings.from_rdzv_conf(1, 2, {"config": "/nowhere/run.yaml"})


# --- documentation ---------------------------------------------------------------------------------------------------


def test_every_setting_has_its_meaning():
    """No field without docs, no duration or count without its unit."""
    documented = {doc.name: doc for cls in (ElasticSettings, AgentSettings) for doc in setting_docs(cls)}
    names = {field.name for cls in (ElasticSettings, AgentSettings) for field in fields(cls)} - {"elastic"}
    assert documented.keys() == names
    assert all(doc.doc for doc in documented.values())
    assert all(doc.unit for doc in documented.values() if doc.type in ("float", "int"))


def test_every_setting_is_documented():
    """docs/settings.md mentions every key, and no other in its tables."""
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    tables = re.findall(r"<!-- \w+Settings: .*?<!-- end -->", text, flags=re.DOTALL)
    in_tables = {name for table in tables for name in re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)}
    assert in_tables == KEYS.names
