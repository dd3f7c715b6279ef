"""The coordinators together: who leads and led, how they are, and what an operator can do."""

from __future__ import annotations

import contextlib
import urllib.request

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import SystemClock, poll_until
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.values import TermRecord
from dtf_lightning.farm.server.cluster.cluster import TERMS, LastNode, begun_term, last_other
from dtf_lightning.farm.server.cluster.pictures import as_html, as_markdown
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.farm.updates import ClientSocket
from dtf_lightning.hardware.meter import Meter
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker


def ask(client: Client, path: str, **query):
    return client.connection.ask("GET", f"/api/cluster/{path}", **query)


@contextlib.contextmanager
def two(memory, folder):
    with contextlib.ExitStack() as stack:
        coordinators = []
        for name in ("c1", "c2"):
            coordinators.append(CoordinatorInThread(memory, folder, name=name))
            stack.callback(coordinators[-1].stop)
        yield coordinators


def first_node(client: Client, what: str) -> dict:
    """By its name; empty before one has come."""
    return next(iter(ask(client, what)["nodes"]), {})


def states(client: Client) -> dict[str, str]:
    return {node["node_id"]: node["state"] for node in ask(client, "nodes")["nodes"]}


def wait_for_states(client: Client, **wanted: str) -> None:
    poll_until(lambda: states(client) == wanted, DEADLINE, f"the states {wanted}")


def test_a_terms_record():
    """It says who led before, and why that ended; the oldest are forgotten, so that `TERMS` are left."""
    first, forget = begun_term("a", 5.0, {})
    assert (first, forget) == (TermRecord(coordinator="a", started=5.0, reason="first_leader"), ())
    died, _ = begun_term("b", 9.0, {1: first})
    assert died == TermRecord(coordinator="b", started=9.0, previous="a", reason="leader_timeout")
    resigned = TermRecord(coordinator="b", started=9.0, ended=10.0, end_reason="leader_resigned")
    assert begun_term("a", 11.0, {1: first, 7: resigned})[0].reason == "leader_resigned"
    many = dict.fromkeys(range(1, TERMS + 3), first)
    assert begun_term("a", 5.0, many)[1] == (1, 2, 3)


def test_the_last_one_stays():
    assert last_other("a", ["a", "b"]) == "b"
    with pytest.raises(LastNode, match="no other coordinator is there and enabled: a must stay"):
        last_other("a", ["a"])


def test_a_machines_numbers(tmp_path):
    meter = Meter(tmp_path, SystemClock())
    first, second = meter.measure(), meter.measure()
    assert {"cpu_usage", "memory_usage", "disk_usage", "load_average", "load_per_core"} <= first.keys()
    assert all(0 <= second[name] <= 100 for name in ("cpu_usage", "memory_usage", "disk_usage"))
    assert second["network_io"] >= 0


def test_pictures_hide_nothing_and_run_nothing():
    node = {
        "node_id": "<script>alert(1)</script>|", "state": "leader", "enabled": True, "health_status": "healthy",
        "uptime_seconds": 1.0, "last_heartbeat": None, "address": "http://x",
    }  # fmt: skip
    status = {
        "cluster_health": "warning", "leader_id": "a", "term_start_time": None, "current_term": 7, "nodes": [node],
        "reasons": ["b has gone"], "etcd_members": 3, "etcd_members_answering": 2,
    }  # fmt: skip
    term = {"term": 3, "leader_id": "b", "start_time": "t", "duration_seconds": 1.5, "reason": "leader_timeout"}
    page = as_html(status, {"leadership_history": [term]})
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    text = as_markdown(status, {"leadership_history": [term]})
    assert "a leads, term 7; 2 of 3 members of etcd answer." in text
    assert "| 3 | b | t | 1.5 | leader_timeout |" in text
    assert "</script>\\|" in text


@pytest.mark.process
class TestOne:
    def test_status(self, client):
        """By the names of the requirements."""
        poll_until(lambda: ask(client, "status")["quorum_size"] == 1, DEADLINE, "etcd's members to be known")
        poll_until(lambda: first_node(client, "status").get("last_heartbeat"), DEADLINE, "the first word")
        poll_until(lambda: ask(client, "leader")["term_start_time"], DEADLINE, "the term")
        told = ask(client, "status")
        assert told["leader_id"] == "c0"
        assert told["current_term"] == ask(client, "leader")["current_term"] > 0
        (node,) = told["nodes"]
        assert (node["node_id"], node["state"], node["term"], node["enabled"]) == (
            "c0",
            "leader",
            told["current_term"],
            True,
        )
        assert node["uptime_seconds"] >= 0
        assert told["cluster_health"] in ("healthy", "warning")
        leader = ask(client, "leader")
        assert leader["leadership_history"] == []
        assert leader["uptime_seconds"] >= 0

    def test_health(self, client):

        def measured() -> bool:
            return first_node(client, "health").get("health", {}).get("cpu_usage") is not None

        poll_until(measured, DEADLINE, "numbers")
        (node,) = ask(client, "health", metrics="cpu,memory")["nodes"]
        assert node["node_id"] == "c0"
        assert node["health"].keys() == {"cpu_usage", "memory_usage", "status", "reasons"}
        with pytest.raises(FarmRefused, match="metrics: expected some of cpu, memory"):
            ask(client, "health", metrics="cpu,x")

    def test_pictures(self, client, coordinator):
        for name, kind in (("html", "text/html"), ("markdown", "text/markdown"), ("json", "application/json")):
            request = urllib.request.Request(
                f"{coordinator.url}/api/cluster/visualize?format={name}",
                headers={"Authorization": f"Bearer {read_token(coordinator.token_file)}"},
            )
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                assert answer.headers["Content-Type"].startswith(kind)
                assert b"c0" in answer.read()

    def test_over_the_socket(self, coordinator):
        line = ClientSocket(coordinator.url, read_token(coordinator.token_file))
        for kind, answer in (
            ("get_cluster_status", "cluster_status_response"),
            ("get_cluster_health", "cluster_health_response"),
            ("get_leader_info", "leader_info_response"),
        ):
            line.send({"type": kind, "request_id": kind})
            told = line.receive(DEADLINE)
            assert (told["type"], told["request_id"], told["success"]) == (answer, kind, True)
        line.send({"type": "get_cluster_health", "metrics": ["x"]})
        assert line.receive(DEADLINE)["status"] == 422
        line.close()

    def test_commands(self, coordinator, capsys):
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        with coordinator.client() as client:
            poll_until(lambda: states(client) == {"c0": "leader"}, DEADLINE, "the coordinator to lead")
        assert main(["farm", "nodes", *where]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[1].split()[:2] == ["c0", "leader"]
        assert main(["farm", "node", "disable", *where, "c0"]) == 2
        assert "c0 must stay" in capsys.readouterr().err
        assert main(["farm", "node", "enable", *where, "c0"]) == 0
        assert capsys.readouterr().out == "c0: leader\n"

    def test_the_only_one_cannot_be_disabled(self, client):
        poll_until(lambda: states(client) == {"c0": "leader"}, DEADLINE, "the coordinator to lead")
        with pytest.raises(FarmRefused, match="c0 must stay") as caught:
            client.connection.ask("POST", "/api/cluster/node/c0/disable")
        assert caught.value.status == 409
        with pytest.raises(FarmRefused, match="knows no coordinator 'x'; it has c0") as caught:
            client.connection.ask("POST", "/api/cluster/node/x/enable")
        assert caught.value.status == 404


@pytest.mark.process
class TestTwo:
    def test_a_disabled_one_hands_over(self, memory, tmp_path):
        """Leadership, workers and submissions go to the other; its attempts go on, and it comes back when it is enabled."""
        with (
            two(memory, tmp_path) as (first, second),
            Client(f"{first.url},{second.url}", first.token_file) as client,
            second.client() as other,
        ):
            wait_for_states(other, c1="leader", c2="follower")
            worker = PlayedWorker((first.url,), read_token(first.token_file))
            worker.wait_until_welcome()
            task = client.submit(["x"])
            order = worker.next()
            updates = other.updates("leadership_updates")
            next(updates)
            told = client.connection.ask("POST", "/api/cluster/node/c1/disable", reason="its disk is changed")
            assert (told["state"], told["enabled"]) == ("offline", False)
            wait_for_states(other, c1="offline", c2="leader")
            update = next(updates)
            assert (update["type"], update["reason"]) == ("leadership_update", "leader_disabled")
            assert (update["previous_leader_id"], update["new_leader_id"]) == ("c1", "c2")
            history = ask(other, "leader")["leadership_history"]
            assert [(one["leader_id"], one["reason"]) for one in history] == [("c1", "leader_disabled")]
            assert history[0]["duration_seconds"] > 0
            poll_until(lambda: other.workers()[0]["metadata"]["coordinator"] == "c2", DEADLINE, "the worker at c2")
            worker.end(order)
            assert other.wait(task, DEADLINE).status == "completed"
            assert other.task(client.submit(["y"])).status != "unknown"
            with first.client() as alone:
                alone.connection.patience = 0.0
                with pytest.raises(FarmRefused, match="c1 is disabled by an operator: ask another one") as caught:
                    alone.submit(["z"])
                assert caught.value.status == 503
                assert alone.wait(task, DEADLINE).status == "completed"
            with pytest.raises(FarmRefused, match="c2 must stay"):
                client.connection.ask("POST", "/api/cluster/node/c2/disable")
            assert client.connection.ask("POST", "/api/cluster/node/c1/enable")["enabled"]
            wait_for_states(other, c1="follower", c2="leader")
            updates.close()
            worker.close()

    def test_one_that_ends(self, memory, tmp_path):
        """It is known as offline, and the history says that its leader went of its own accord."""
        with two(memory, tmp_path) as (_, second), second.client() as client:
            third = CoordinatorInThread(memory, tmp_path, name="c0")
            wait_for_states(client, c0="follower", c1="leader", c2="follower")
            poll_until(lambda: first_node(client, "health").get("timestamp"), DEADLINE, "a word of c0")
            updates = client.updates("cluster_status", type="cluster_status_update", node_id="c0")
            next(updates)
            third.stop()
            told = next(updates)
            assert [node["state"] for node in told["nodes"]] == ["offline", "leader", "follower"]
            assert states(client)["c0"] == "offline"
            assert "c0 has gone" in ask(client, "status")["reasons"]
            updates.close()
