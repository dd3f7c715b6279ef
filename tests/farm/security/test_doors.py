"""Who is let in to what, over HTTP and WebSockets, by two coordinators of one farm."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.security.identity import OWNER, Identity
from dtf_lightning.farm.security.permissions import PERMISSIONS, Role
from dtf_lightning.farm.security.refusals import EACH
from dtf_lightning.farm.server.doors.authenticator import Authenticator
from dtf_lightning.farm.updates import ClientSocket, _Broken
from support.farm.app import farm_app
from support.farm.browsing import Browsing
from support.farm.doors import refusal_of, refused
from support.farm.server import DEADLINE, PlayedWorker

pytestmark = pytest.mark.process


def submit(connection, project: str = "default", **fields) -> str:
    task = {"task_id": new_task_id(time.time()), "command": ["x"], "project": project, **fields}
    connection.ask("POST", "/api/tasks", {"tasks": [task]})
    return task["task_id"]


class TestRoles:
    def test_the_farms_own_token_is_the_admins(self, farm):
        task = submit(farm.admin)
        assert farm.admin.ask("POST", f"/api/tasks/{task}/cancel")["cancellation"] == "cancelled"

    def test_a_viewer_looks(self, farm):
        viewer = farm.connect(farm.token("viewer"))
        assert viewer.ask("GET", "/api/status")["farm"] == "f"
        refusal = refused(submit, viewer)
        assert (refusal.status, str(refusal)) == (
            403,
            "task.submit needs the role developer, ci, operator or admin; this token's role is viewer",
        )

    def test_a_developer_submits_and_does_not_operate(self, farm):
        developer = farm.connect(farm.token("developer", subject="ann"), at=1)
        submit(developer)
        assert refused(developer.ask, "PUT", "/api/licences/l", {"total": 1}).status == 403
        assert refused(developer.ask, "POST", "/api/tokens", {"role": "admin"}).status == 403

    def test_every_route_by_every_role(self, farm):
        """Nothing but 403 for who may not, before anything else is looked at; never 403 for who may."""
        with farm_app() as app:
            routes = [(r.path, method, r.operation_id) for r in app.routes for method in getattr(r, "methods", ())]
        wrong = []
        connections = {role: farm.connect(farm.token(role.value)) for role in (Role.VIEWER, Role.CI)}
        for pattern, method, operation in routes:
            path = pattern.replace("{task_id}", "t").replace("{name:path}", "n")
            for role, connection in connections.items():
                try:
                    connection.stream(path)[0].read() if method == "GET" else connection.ask(method, path)
                    status = 200
                except FarmRefused as refusal:
                    status = refusal.status
                if (status == 403) is (role in PERMISSIONS[operation].roles) or status == 401:
                    wrong.append((method, path, role, status))
        assert wrong == []

    def test_nobody(self, farm):
        for token in ("", "x", "a.b.c", farm.own + "x", farm.token("viewer") + "A"):
            assert refused(farm.connect(token or "none").ask, "GET", "/api/status").status == 401

    def test_the_page(self, farm):
        """It shows the whole farm: for those who may see that. What may be done there is what the API lets do."""
        viewer, ci = Browsing(farm.urls[0], farm.token("viewer")), Browsing(farm.urls[0], farm.token("ci"))
        scoped = Browsing(farm.urls[0], farm.token("viewer", projects=["a"]))
        assert viewer.get("/fleet").status == 200
        assert "this token's role is ci" in ci.get("/fleet").text
        assert "about all projects" in scoped.get("/tasks", project="a").text
        refusal = viewer.ask("POST", "/do/cordon?name=w")
        assert (refusal.status, "worker.cordon needs the role operator or admin" in refusal.text) == (403, True)
        assert viewer.ask("POST", "/do/nothing?name=w").status == 404

    def test_signing_in_with_a_signed_token(self, farm):
        url = farm.urls[0]
        made = farm.make("viewer")

        def sign_in(token: str):
            return Browsing(url).ask("POST", "/sign-in", f"token={token}".encode(), Origin=url)

        cookie = sign_in(made["token"]).headers["set-cookie"].partition(";")[0]
        assert Browsing(url, cookie=cookie).get("/fleet").status == 200
        assert Browsing(url, cookie=cookie).get("/api/status").status == 401
        assert "role is ci" in sign_in(farm.token("ci")).text
        assert "shape is wrong" in sign_in("a.b.?").text
        farm.admin.ask("DELETE", f"/api/tokens/{made['token_id']}")
        assert Browsing(url, cookie=cookie).ask("GET", "/fleet", Accept="x").status == 401


class TestProjects:
    def test_tasks(self, farm):
        only_a = farm.connect(farm.token("developer", projects=["a"]))
        own, other = submit(only_a, "a", plan="pa"), submit(farm.admin, "b", plan="pb")
        refusal = refused(submit, only_a, "b")
        assert "limited to the project a, and this is of the project b" in str(refusal)
        assert only_a.ask("GET", f"/api/tasks/{own}")["task_id"] == own
        for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/artifacts"), ("POST", "/retry")):
            assert refused(only_a.ask, method, f"/api/tasks/{other}{path}").status == 403
        assert refused(only_a.ask, "GET", "/api/task_ends", tasks=f"{own},{other}").status == 403
        assert only_a.ask("GET", "/api/task_ends", tasks=own) == {"ended": [], "unknown": []}
        assert refused(only_a.ask, "GET", f"/api/tasks/{new_task_id(0)}").status == 404
        assert only_a.ask("POST", f"/api/tasks/{own}/cancel")["cancellation"] == "cancelled"
        assert only_a.ask("GET", f"/api/tasks/{own}")["status"] == "cancelled"  # and when it is done
        assert {one["project"] for one in self._listed(only_a)} == {"a"}
        assert refused(only_a.ask, "GET", "/api/tasks", project="b").status == 403
        assert refused(only_a.ask, "POST", "/api/results/query", {"sql": "SELECT 1"}).status == 403

    def _listed(self, connection) -> list[dict]:
        return [one["metadata"] for one in connection.ask("GET", "/api/tasks")["tasks"]]

    def test_keys_are_of_the_whole_farm_and_tell_nothing(self, farm):
        """Who submits under the key of another project's task hears that it is taken, and not what that task was."""
        only_a = farm.connect(farm.token("developer", projects=["a"]))
        secret = ["train", "--secret-plan"]
        submit(farm.admin, "b", command=secret, key="nightly")
        assert "secret-plan" in str(refused(submit, farm.admin, "a", key="nightly"))
        refusal = refused(submit, only_a, "a", key="nightly")
        assert (refusal.status, "secret-plan" in str(refusal), "under this key" in str(refusal)) == (409, False, True)

    def test_plans(self, farm):
        only_a = farm.connect(farm.token("developer", projects=["a"]))
        submit(farm.admin, "b", plan="p-b"), submit(only_a, "a", plan="p-a")
        assert only_a.ask("GET", "/api/plans/p-a")["total"] == 1
        assert refused(only_a.ask, "GET", "/api/plans/p-b").status == 403
        ended = farm.admin.ask("POST", "/api/plans/p-b/cancel")
        assert ended["num_cancelled"] == 1
        assert refused(only_a.ask, "GET", "/api/plans/p-b").status == 403  # of what has ended, too
        plan = {
            "plan_id": new_task_id(time.time()),
            "plan": {"name": "n", "project": "b", "tasks": {"t": {"run": "x"}}},
        }
        assert refused(only_a.ask, "POST", "/api/plans", plan).status == 403

    def test_updates(self, farm):
        socket = ClientSocket(farm.urls[0], farm.token("viewer", projects=["a"]))
        try:
            socket.send({"type": "subscribe", "channel": "task_updates"})
            assert socket.receive(DEADLINE)["success"]
            submit(farm.admin, "b"), submit(farm.admin, "a")
            told = poll_until(lambda: self._update(socket), DEADLINE, "an update")
            assert told["project"] == "a"
            socket.send({"type": "subscribe", "channel": "task_updates", "filter": {"project": "b"}})
            answer = poll_until(lambda: self._update(socket, "subscribe_response"), DEADLINE, "an answer")
            assert answer["status"] == 403
            socket.send({"type": "get_aggregated_results"})
            answer = poll_until(lambda: self._update(socket, "aggregated_results"), DEADLINE, "an answer")
            assert (answer["status"], "about all projects" in answer["error"]) == (403, True)
        finally:
            socket.close()

    def _update(self, socket, kind: str = "task_update") -> dict | None:
        told = socket.receive(DEADLINE)
        return told if told["type"] == kind else None


class TestRevoking:
    def test_every_coordinator_hears_of_it(self, farm):
        """Also of a token that it has seen; and connections end."""
        made = farm.make("developer", subject="bob")
        here, there = farm.connect(made["token"]), farm.connect(made["token"], at=1)
        assert here.ask("GET", "/api/status")["farm"] == there.ask("GET", "/api/status")["farm"] == "f"
        sockets = [ClientSocket(url, made["token"]) for url in farm.urls]
        assert farm.admin.ask("DELETE", f"/api/tokens/{made['token_id']}", reason="left")["revoked"]
        for socket in sockets:
            with pytest.raises(_Broken, match="closed the connection"):
                self._to_its_end(socket)
            socket.close()
        told = refused(ClientSocket, farm.urls[0], made["token"])
        assert str(told).endswith("refused the connection: this token was revoked: left")
        for connection in (here, there):
            refusal = refused(connection.ask, "GET", "/api/status")
            assert (refusal.status, str(refusal)) == (401, "this token was revoked: left")
        (shown,) = (
            one for one in farm.admin.ask("GET", "/api/tokens")["tokens"] if one["token_id"] == made["token_id"]
        )
        assert (shown["subject"], shown["role"], shown["revoked"], "token" in shown) == (
            "bob",
            "developer",
            True,
            False,
        )
        assert farm.admin.ask("DELETE", f"/api/tokens/{made['token_id']}")["revoked"]
        assert refused(farm.admin.ask, "DELETE", "/api/tokens/nobody").status == 404

    def _to_its_end(self, socket) -> None:
        while True:
            socket.receive(DEADLINE)

    def test_a_worker_that_is_connected(self, farm):
        made = farm.make("worker", subject="w-revoked")
        worker = PlayedWorker((farm.urls[0],), made["token"], name="w-revoked")
        try:
            worker.wait_until_welcome()
            farm.admin.ask("DELETE", f"/api/tokens/{made['token_id']}")
            assert str(worker.error()).endswith(
                "refused this worker (HTTP 401): this token was revoked: no reason was given"
            )
        finally:
            worker.close()

    def test_keys(self, farm):
        """Older ones verify, until they are forgotten."""
        before = farm.token("viewer")
        rotated = farm.admin.ask("POST", "/api/tokens/rotate-keys")
        assert len(rotated["keys"]) >= 2
        farm.connect(before).ask("GET", "/api/status")
        forgotten = farm.admin.ask("POST", "/api/tokens/rotate-keys", forget="true")
        assert len(forgotten["keys"]) == 1
        for at in (0, 1):
            refusal = poll_until(lambda: refusal_of(farm.connect(before, at)), DEADLINE, "the coordinator to hear")  # noqa: B023
            assert (refusal.status, "not known here" in str(refusal)) == (401, True)
        farm.connect(farm.token("viewer")).ask("GET", "/api/status")

    def test_a_connection_whose_time_is_over(self):
        async def story() -> None:
            class Clock:
                def wall(self) -> float:
                    return 100.0

            told: asyncio.Queue[str] = asyncio.Queue()
            authenticator = Authenticator("secret", "f", Mirror(FarmKeys("f")), Clock())
            who = Identity(subject="ann", role=Role.VIEWER, token="t", expires=100.01)
            with authenticator.connected(who, told.put), authenticator.connected(OWNER, told.put):
                async with asyncio.timeout(DEADLINE):
                    assert await told.get() == "its token's time is over"
            assert told.empty()

        asyncio.run(story())


class TestWorkers:
    def test_in_its_own_name(self, farm):
        with pytest.raises(FarmRefused, match="give its name, or a number of uses"):
            farm.token("worker")
        worker = PlayedWorker((farm.urls[0],), farm.token("worker", subject="w1"), name="w2")
        try:
            assert "of the worker 'w1', and speaks for no other, as here for 'w2'" in str(worker.error())
        finally:
            worker.close()
        rest = farm.connect(farm.token("worker", subject="w1"))
        assert refused(rest.ask, "POST", "/api/register", {"worker_id": "w2"}).status == 403
        assert refused(rest.ask, "GET", "/api/workers/w2/tasks", session="s").status == 403
        assert refused(rest.ask, "POST", "/api/health", {"worker_id": "w2", "session": "s"}).status == 403
        assert refused(rest.ask, "GET", "/api/tasks").status == 403

    def test_of_its_own_attempts(self, farm):
        """Another worker neither ends an attempt, nor writes its output, nor leaves files in its name."""
        mine = PlayedWorker((farm.urls[0],), farm.token("worker", subject="w3"), name="w3", cpu=1.0)
        other = farm.connect(farm.token("worker", subject="w4"))
        try:
            mine.wait_until_welcome()
            task = submit(farm.admin, needs=[{"amounts": {"cpu": 1}}])
            order = poll_until(lambda: self._order(mine, task), DEADLINE, "the task to come")
            at = {"revision": order.revision}
            assert mine.write(order, 0, b"out") == 3
            refusal = refused(other.send, "POST", f"/api/tasks/{task}/logs", b"x", **at, offset=3)
            assert (refusal.status, "makes no such attempt" in str(refusal)) == (403, True)
            assert refused(other.ask, "POST", f"/api/tasks/{task}/artifacts", {"files": []}, **at).status == 403
            assert refused(other.ask, "GET", f"/api/tasks/{task}/stdin").status == 403
            stale = refused(other.ask, "POST", f"/api/tasks/{task}/complete", {"worker_id": "w4", **at})
            named = refused(other.ask, "POST", f"/api/tasks/{task}/complete", {"worker_id": "w3", **at})
            assert (stale.status, named.status) == (409, 403)
            assert farm.admin.ask("GET", f"/api/tasks/{task}")["status"] in ("assigned", "running")
            mine.end(order)
            poll_until(
                lambda: farm.admin.ask("GET", f"/api/tasks/{task}")["status"] == "completed", DEADLINE, "its own end"
            )
            assert mine.write(order, 3, b"late") == 7  # what it still had to say of it
        finally:
            mine.close()

    def test_over_its_socket_of_its_own_attempts(self, farm):
        """Another worker neither says that an attempt has begun, nor where its members meet."""
        mine = PlayedWorker((farm.urls[0],), farm.token("worker", subject="w5"), name="w5", here=1.0)
        other = PlayedWorker((farm.urls[0],), farm.token("worker", subject="w6"), name="w6", there=1.0)
        try:
            task, mark = (submit(farm.admin, needs=[{"amounts": {need: 1}}]) for need in ("here", "there"))
            order = poll_until(lambda: self._order(mine, task), DEADLINE, "the task to come")
            own = poll_until(lambda: self._order(other, mark), DEADLINE, "the other task to come")
            other.start(order)
            other.meet(order)
            other.meet(own)
            meetings = FarmKeys("f").folder(Kind.MEETING)
            poll_until(lambda: farm.store.range(meetings).kvs, DEADLINE, "its own to be noted")
            assert farm.admin.ask("GET", f"/api/tasks/{task}")["status"] == "assigned"
            assert [kv.key.removeprefix(meetings) for kv in farm.store.range(meetings).kvs] == [mark]
        finally:
            mine.close()
            other.close()

    def _order(self, worker: PlayedWorker, task: str):
        order = worker.next()
        if order.task == task:
            return order
        worker.end(order)
        return None


class TestAudit:
    def test_who(self, farm):
        made = farm.make("developer", subject="carla")
        task = submit(farm.connect(made["token"]))
        farm.admin.ask("POST", f"/api/tasks/{task}/cancel")
        lines = farm.audit()
        (line,) = (one for one in lines if one.get("sub") == "carla")
        assert (line["jti"], line["role"], line["path"], line["status"]) == (
            made["token_id"], "developer", "/api/tasks", 200,
        )  # fmt: skip
        (own,) = (one for one in lines if one["path"] == f"/api/tasks/{task}/cancel")
        assert (own["sub"], own["role"], "jti" in own) == ("farm", "admin", False)

    def test_a_stranger_cannot_fill_the_disk(self, farm):
        stranger = farm.connect("x", at=1)
        for _ in range(6 * EACH):
            refused(stranger.ask, "GET", "/api/nothing")
        lines = [one for one in farm.audit(at=1) if one.get("path") == "/api/nothing"]
        assert len(lines) < 6 * EACH  # minutes may have begun meanwhile
        assert all("sub" not in line for line in lines)

    def test_nor_the_log_by_sockets(self, farm, caplog):
        """uvicorn would write a line for each."""
        for _ in range(3):
            with pytest.raises(FarmRefused):
                ClientSocket(farm.urls[0], "x")
        assert "handshake" not in caplog.text

    def test_no_token_is_in_it(self, farm):
        token = farm.token("viewer")
        farm.connect(token).ask("GET", "/api/status")
        refused(farm.connect(token + "A").ask, "GET", "/api/status")
        for at in (0, 1):
            text = json.dumps(farm.audit(at))
            assert farm.own not in text
            assert token[-86:] not in text
