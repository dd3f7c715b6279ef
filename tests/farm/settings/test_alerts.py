"""Section `alerts`: what is read, and what is refused with what was meant."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.watching.alerts import Severity
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

GOOD = """\
alerts:
  calm: 2m
  handlers:
    - {name: mail, type: email, url: "smtp://mail:25", sender: farm@lab, to: [ada@lab, bob@lab]}
    - name: chat
      type: slack
      url: https://hooks.example/${CHAT}
  rules:
    - name: tests wait
      metric: dtf_farm_queue_oldest_wait_seconds
      above: 1800
      lasting: 5m
      severity: critical
      owner: ada
      handlers: [chat]
      escalate_after: 30m
      escalate_to: [mail]
    - {name: etcd, finding: "etcd_*"}
"""


def load(tmp_path, text):
    file = tmp_path / "coordinator.yaml"
    file.write_text(text)
    return CoordinatorSettings.load(file)


def test_what_is_read(tmp_path, monkeypatch, capsys):
    """Durations, variables, defaults; a rule that names nobody tells everybody. A chat's address is a secret."""
    monkeypatch.setenv("CHAT", "s3cret")
    settings = load(tmp_path, GOOD)
    first, second = settings.alerts.alert_rules
    assert (first.lasting, first.escalate_after, first.severity, first.handlers) == (
        300.0,
        1800.0,
        Severity.CRITICAL,
        ("chat",),
    )
    assert (second.finding, second.handlers, settings.alerts.calm) == ("etcd_*", ("mail", "chat"), 120.0)
    assert settings.alerts.handlers[1].url == "https://hooks.example/s3cret"
    assert settings.secret_variables == {"CHAT"}
    file = str(tmp_path / "coordinator.yaml")
    assert main(["farm", "config", "check", file]) == 0
    assert main(["farm", "config", "show", "--json", file]) == 0
    shown = capsys.readouterr().out
    assert "tests wait" in shown
    assert "s3cret" not in shown
    assert main(["farm", "config", "schema", "coordinator"]) == 0
    rules = json.loads(capsys.readouterr().out)["properties"]["alerts"]["properties"]["rules"]
    assert rules["items"]["required"] == ["name"]
    assert "anyOf" in rules["items"]["properties"]["lasting"]


def rule(**fields):
    return f"alerts:\n  rules:\n    - {json.dumps({'name': 'r', **fields})}\n"


METRIC = "dtf_farm_queue_oldest_wait_seconds"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rule(metric="dtf_farm_queue_oldest_seconds", above=1), f":3:.*not known; did you mean '{METRIC}'"),
        (rule(finding="worker_error"), "finding 'worker_error' is not known; did you mean 'worker_errors'"),
        (rule(finding="no_*", above=1), "above is the limit of a metric"),
        (rule(metric=METRIC), "needs a limit: one of above and below"),
        (rule(metric=METRIC, above=1, below=0), "needs a limit: one of above and below"),
        (rule(), "a rule watches either a metric or a finding"),
        (rule(finding="files", metric=METRIC), "either a metric or a finding"),
        (rule(finding="files", severity="bad"), "severity must be one of info, warning, critical, got 'bad'"),
        (rule(finding="files", level="healthy"), "level must be one of warning, critical"),
        (rule(finding="files", lasting=-1), "lasting must not be negative"),
        (rule(finding="files", escalate_after=5), "escalate_after was given alone"),
        (rule(finding="files", handlers=["lgo"]), "'r' names 'lgo'; did you mean 'log'"),
        (rule(finding="files", handler="log"), "unknown key 'handler' in each of rules; did you mean 'handlers'"),
        ("alerts:\n  rules: [{finding: files}]\n", "each of rules needs name"),
        ("alerts:\n  rules: [files]\n", "each of rules is a mapping"),
        ("alerts:\n  rules: {name: a}\n", "rules is a list"),
        ("alerts:\n  rules: [{name: a, finding: files}, {name: a, finding: files}]\n", "a is there more than once"),
        ("alerts:\n  handlers: [{name: log, type: slack, url: 'http://x'}]\n", "every farm has that handler"),
        ("alerts:\n  handlers: [{name: m, type: email, url: 'smtp://x'}]\n", "type email needs sender"),
        ("alerts:\n  handlers: [{name: m, type: slack, url: 'smtp://x'}]\n", "url of slack begins with https"),
        ("alerts:\n  handlers: [{name: m, type: x, options: [a]}]\n", "options must be KEY=VALUE each, got 'a'"),
        ("alerts:\n  handlers: [{name: m, type: x, timeout: 0}]\n", "timeout must be above 0"),
        ("alerts: {calm: -1}\n", "calm must not be negative"),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    """With its place in the file, and the nearest that there is."""
    with pytest.raises(
        SettingsError, match=rf"coordinator\.yaml:\d+:\d+: .*{words}" if not words.startswith(":") else words
    ):
        load(tmp_path, text)
