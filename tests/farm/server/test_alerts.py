"""Alerts of a farm: from a finding to a webhook, through people's words, a hanging handler, and the death of the leader."""

from __future__ import annotations

import contextlib
import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.rules.watching import incidents
from dtf_lightning.farm.server.alerting import alerting
from dtf_lightning.farm.server.watching import monitor
from dtf_lightning.farm.settings.alerts import AlertHandlerSettings, AlertRuleSettings
from support.farm.browsing import Browsing
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker
from support.farm.told import Listener

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(monitor, "INTERVAL", 0.05)
    monkeypatch.setattr(alerting, "AGAIN", 0.05)


@pytest.fixture
def hook():
    with Listener() as found:
        yield found


def settings(hook, *, timeout=DEADLINE, **rule):
    handlers = (
        AlertHandlerSettings(name="hook", type="webhook", url=hook.url, timeout=timeout),
        AlertHandlerSettings(name="phone", type="webhook", url=f"{hook.url}/phone", timeout=timeout),
    )
    told = {"name": "gone", "finding": "worker_gone", "owner": "ada", "handlers": ("hook",)} | rule
    return {"alerts.rules": (AlertRuleSettings(**told),), "alerts.handlers": handlers, "alerts.calm": 0.0}


@contextlib.contextmanager
def farm(memory, folder, told, name="c0"):
    coordinator = CoordinatorInThread(memory, folder, settings=told, name=name)
    try:
        with coordinator.client() as client:
            yield coordinator, client
    finally:
        coordinator.stop()


def play(coordinator, name="w1"):
    worker = PlayedWorker((coordinator.url,), coordinator.token_file.read_text().strip(), name=name)
    worker.wait_until_welcome()
    return worker


def leave(coordinator, name="w1"):
    """A worker comes and goes without a word."""
    play(coordinator, name).close()


def told(hook):
    return [(said.json["step"], said.path) for said in hook.said]


def until(client, condition, what):
    poll_until(lambda: condition(client.alerts()["incidents"]), DEADLINE, lambda: f"{what}: {client.alerts()}")


def sent(number):
    """A condition: one incident, of which so many words are sent."""
    return lambda found: len(found) == 1 and [one["state"] for one in found[0]["deliveries"]] == ["sent"] * number


def test_from_a_finding_to_its_end(memory, tmp_path, hook, capsys):
    """A worker has gone: one is told, once, and when it is back. The command and the page show it; who it was is in the audit file."""
    with farm(memory, tmp_path, settings(hook)) as (coordinator, client):
        place = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        leave(coordinator)
        until(client, sent(1), "told")
        (incident,) = client.alerts()["incidents"]
        assert (incident["state"], incident["owners"], incident["alerts"][0]["subject"]) == ("firing", ["ada"], "w1")
        assert main(["farm", "alerts", "list", *place]) == 0
        assert f"{incident['id']}  firing" in capsys.readouterr().out
        page = Browsing(coordinator.url, coordinator.token_file.read_text().strip())
        assert "w1: this worker has no connection" in page.get("/cluster").text
        assert main(["farm", "alerts", "acknowledge", incident["id"], *place]) == 0
        assert "acknowledged by farm" in capsys.readouterr().out
        worker = play(coordinator)
        until(client, sent(2), "over")
        worker.close()
        until(
            client,
            lambda found: [one["state"] for one in found] == ["firing", "resolved"],
            "another one, the open one first",
        )
        assert [one["state"] for one in client.alerts(open_only=True)["incidents"]] == ["firing"]
        lines = [json.loads(line) for line in coordinator.audit.read_text().splitlines()]
        assert [line["sub"] for line in lines if line["path"].endswith("/acknowledge")] == ["farm"]
    assert told(hook)[:2] == [("firing", "/"), ("resolved", "/")]


def test_the_leader_dies(memory, tmp_path, hook, monkeypatch):
    """What was said before is not said again by the next leader; what it could not say is. Escalation goes on by the record."""
    told_of = settings(hook, escalate_after=0.01, escalate_to=("phone",))
    hook.answers = [(200, {}), (503, {})]
    with farm(memory, tmp_path, told_of) as (coordinator, client):
        leave(coordinator)
        until(
            client,
            lambda found: bool(found) and len(found[0]["deliveries"]) == 2 and bool(found[0]["trouble"]),
            "trouble",
        )
        (trouble,) = client.alerts()["incidents"][0]["trouble"]
        assert "phone could not tell that it is escalated (1 tries): 127.0.0.1 answered 503" in trouble
    assert told(hook) == [("firing", "/"), ("escalated", "/phone")]
    monkeypatch.setattr(incidents, "FIRST_PAUSE", 0.05)
    with farm(memory, tmp_path, told_of, "c1") as (_, client):
        until(client, sent(2), "the rest")
    assert told(hook) == [("firing", "/"), ("escalated", "/phone"), ("escalated", "/phone")]
    keys = [said.headers["Idempotency-Key"] for said in hook.said]
    assert keys[1] == keys[2] != keys[0]


def test_a_handler_that_hangs(memory, tmp_path, hook):
    """It is said in the incident; others are told meanwhile, and tasks go on. It is asked nothing while it hangs."""
    told_of = settings(hook, timeout=0.1, handlers=("hook", "log"))
    hook.hangs.set()
    with farm(memory, tmp_path, told_of) as (coordinator, client):
        leave(coordinator)
        until(client, lambda found: bool(found) and len(found[0]["trouble"]) == 1, "trouble")
        (incident,) = client.alerts()["incidents"]
        assert (
            "hook could not tell that it is firing (1 tries): it has not come back within 0.1 s" in incident["trouble"]
        )
        until(client, lambda found: "sent" in [one["state"] for one in found[0]["deliveries"]], "the log")
        task = client.submit(["x"])
        worker = play(coordinator, "w2")
        worker.end(worker.next())
        assert client.wait(task).status == "completed"
        worker.close()
        assert len(hook.said) == 1
        hook.release.set()


def test_what_people_say(memory, tmp_path, hook, capsys):
    """A silence, and its end; a handler is tried; what is not there, and what is too long, is refused."""
    with farm(memory, tmp_path, settings(hook, name="gone away")) as (coordinator, client):
        place = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        words = ["silence", "gone*", "--for", "1h", "--reason", "moving"]
        assert main(["farm", "alerts", *words, *place]) == 0
        silence = capsys.readouterr().out.split()[1].rstrip(":")
        leave(coordinator)
        until(client, lambda found: bool(found) and found[0]["silenced"] and not found[0]["deliveries"], "silence")
        assert main(["farm", "alerts", "list", *place]) == 0
        shown = capsys.readouterr().out
        assert ("silenced" in shown, f"silence {silence}: gone* of * until" in shown) == (True, True)
        assert main(["farm", "alerts", "unsilence", silence, *place]) == 0
        until(client, sent(1), "told")
        assert main(["farm", "alerts", "test", "phone", *place]) == 0
        hook.answers = [(500, {})]
        assert main(["farm", "alerts", "test", "phone", *place]) == 1
        assert "phone: 127.0.0.1 answered 500" in capsys.readouterr().out
        assert told(hook) == [("firing", "/"), ("test", "/phone"), ("test", "/phone")]
        for ask, words in (
            (lambda: client.acknowledge_alert("none"), "no incident is called 'none'"),
            (lambda: client.unsilence_alerts("none"), "no silence is called 'none'"),
            (lambda: client.test_alert_handler("none"), "no handler is called 'none'; there are log, hook, phone"),
            (lambda: client.silence_alerts(seconds=91 * 86400.0, reason="x"), "ends after 90 days at most"),
            (lambda: client.silence_alerts(seconds=1.0, reason=" "), "the reason of a silence has 1 to"),
        ):
            with pytest.raises(FarmRefused, match=words):
                ask()
