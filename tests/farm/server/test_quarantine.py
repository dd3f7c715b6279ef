"""`dtf farm quarantine`: who may put a test there, where that is written, and what becomes of a plan."""

from __future__ import annotations

import contextlib
import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.quarantine.values import QuarantineRecord
from support.farm.playing import Players

pytestmark = pytest.mark.process

TEST = "tests/a.py::test_x[a/b?c%]"


@pytest.fixture
def dtf(coordinator, capsys):
    def ask(*words):
        place = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        at = words.index("--") if "--" in words else len(words)
        code = main(["farm", *words[:at], *place, *words[at:]])
        told = capsys.readouterr()
        return code, told.out + told.err

    return ask


def test_add_list_remove(dtf, client, coordinator, memory):
    """In etcd, in the list, in the audit file with who asked for it; adding again changes it."""
    code, told = dtf("quarantine", "add", TEST, "--owner", "ada", "--reason", "#7", "--expires", "2d")
    assert (code, told.startswith(f"{TEST}: in quarantine until ")) == (0, True), told
    (one,) = client.quarantine()
    assert (one["project"], one["test"], one["owner"], one["reason"], one["active"]) == (
        "default",
        TEST,
        "ada",
        "#7",
        True,
    )
    assert one["by"] == "farm"
    assert len(memory.range("/dtf/farm/f/quarantine/").kvs) == 1
    client.put_into_quarantine("default", TEST, owner="bob", reason="#8", seconds=1000.0)
    code, told = dtf("quarantine", "list")
    assert (code, "bob" in told, "#8" in told, "ada" in told) == (0, True, True, False), told
    assert dtf("quarantine", "list", "--project", "other", "--json") == (0, "[]\n")
    code, told = dtf("quarantine", "remove", TEST)
    assert (code, told) == (0, f"{TEST}: counts again\n")
    code, told = dtf("quarantine", "remove", TEST)
    assert (code, "is in no quarantine" in told) == (1, True), told
    assert client.quarantine() == []
    lines = [json.loads(line) for line in coordinator.audit.read_text().splitlines()]
    asked = [(line["method"], line["status"], line["sub"]) for line in lines if line["path"].endswith(TEST)]
    assert asked == [("PUT", 200, "farm"), ("PUT", 200, "farm"), ("DELETE", 200, "farm"), ("DELETE", 404, "farm")]


def test_it_has_an_owner_a_reason_and_an_end(dtf, client):
    code, told = dtf("quarantine", "add", "t", "--owner", "ada", "--reason", "#7", "--expires", "91d")
    assert (code, "ends after 90 days at most" in told) == (2, True), told
    code, told = dtf("quarantine", "add", "t", "--owner", "ada", "--reason", " ")
    assert (code, "the reason of a quarantine has 1" in told) == (2, True), told
    with pytest.raises(SystemExit):
        dtf("quarantine", "add", "t", "--reason", "#7")
    with pytest.raises(FarmRefused, match="greater than 0"):
        client.put_into_quarantine("default", "t", owner="ada", reason="#7", seconds=-1)


def test_who_may(client, coordinator, tmp_path):
    """A developer of the project; neither one of another project, nor CI, nor who only looks."""
    client.set_project("mine")
    client.set_project("others")

    def of(role, **fields):
        file = tmp_path / f"{role}.token"
        file.write_text(client.create_token(role, subject=role, **fields)["token"])
        file.chmod(0o600)
        return Client(coordinator.url, file)

    fields = {"owner": "ada", "reason": "#7", "seconds": 1000.0}
    with of("developer", projects=["mine"]) as developer:
        assert developer.put_into_quarantine("mine", "t", **fields)["by"] == "developer"
        with pytest.raises(FarmRefused, match="limited to the project mine"):
            developer.put_into_quarantine("others", "t", **fields)
        client.put_into_quarantine("others", "t", **fields)
        with pytest.raises(FarmRefused, match="limited to the project mine"):
            developer.take_out_of_quarantine("others", "t")
        assert [one["project"] for one in developer.quarantine()] == ["mine"]
    for role in ("ci", "viewer"):
        with of(role) as other:
            assert len(other.quarantine()) == 2
            with pytest.raises(FarmRefused, match=r"quarantine\.set needs the role developer"):
                other.put_into_quarantine("mine", "t", **fields)


def test_one_that_expired_long_ago_is_forgotten(client, memory):
    """When the next one is added; one that expired lately is still told of."""
    client.put_into_quarantine("default", "lately", owner="ada", reason="#7", seconds=1e-6)
    old = QuarantineRecord(owner="ada", reason="#1", added=1.0, expires=2.0)
    memory.put(FarmKeys("f").key(Kind.QUARANTINE, "default", "old"), encode(old))
    assert {one["test"] for one in client.quarantine("default")} <= {"lately", "old"}
    client.put_into_quarantine("default", "new", owner="ada", reason="#7", seconds=1000.0)
    assert [(one["test"], one["active"]) for one in client.quarantine()] == [("new", True), ("lately", False)]


def test_a_plan(dtf, client, coordinator, tmp_path, monkeypatch):
    """A task in quarantine that fails does not fail it; what else fails does, also one whose quarantine is over."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text("tasks:\n  flaky: {run: f}\n  sound: {run: s}\n")
    failing = {"f"}
    with contextlib.closing(Players(coordinator, lambda worker, asked: asked.command[-1] in failing)):
        client.put_into_quarantine("default", "flaky", owner="ada", reason="#7", seconds=1000.0)
        code, told = dtf("run", "--no-source", "plan.yaml")
        assert (code, "flaky has failed, which does not count: in quarantine until " in told) == (0, True), told
        failing.add("s")
        code, told = dtf("run", "--no-source", "plan.yaml")
        assert code == 1, told
        failing.remove("s")
        client.put_into_quarantine("default", "flaky", owner="ada", reason="#7", seconds=1e-6)
        code, told = dtf("run", "--no-source", "plan.yaml")
        assert (code, "flaky counts again: its quarantine has expired on " in told) == (1, True), told
