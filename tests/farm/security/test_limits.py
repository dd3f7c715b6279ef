"""How much of what anybody may have: the counters, then what a request meets before it is known whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
from collections import Counter
from concurrent.futures import Future

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from websockets.sync.client import connect

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import Connection, FarmRefused
from dtf_lightning.farm.security.limits import Buckets, Caller, RateLimits, body_patience, network_of
from dtf_lightning.farm.server.main import _Server, listen
from dtf_lightning.farm.server.wire import serving, turnstile
from dtf_lightning.farm.server.wire.reach import Wire
from dtf_lightning.farm.server.wire.serving import ConnectionCounter, connections_allowed, server_config
from dtf_lightning.farm.server.wire.turnstile import Turnstile
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from support.farm.server import Loop

DEADLINE = 60.0


class TestBuckets:
    @given(
        rate=st.sampled_from([0.5, 1.0, 4.0, 256.0]),
        burst=st.integers(1, 5),
        asked=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=40),
    )
    def test_as_a_bucket_that_fills_up(self, rate, burst, asked):
        """Against one that is filled in small steps; times are multiples of 1/8 s, so that nothing is rounded."""
        buckets, level, since, now = Buckets(rate, burst), Counter(), {}, 0.0
        for key, eighths in asked:
            now += eighths / 8
            level[key] = min(burst, level[key] + (now - since[key]) * rate) if key in since else burst
            since[key] = now
            wait = buckets.take(key, now)
            if level[key] >= 1 - 1e-9:
                assert wait == 0
                level[key] -= 1
            else:
                assert wait == pytest.approx((1 - level[key]) / rate)

    def test_who_waits_as_long_as_told_comes_in(self):
        buckets = Buckets(3.0, 2)
        now = 1e6
        for _ in range(100):
            while (wait := buckets.take("a", now)) > 0:
                now += wait
        assert now == pytest.approx(1e6 + 98 / 3)

    def test_bounded(self):
        """What was used longest ago goes first."""
        buckets = Buckets(1.0, 1, keys=3)
        for key in "abcad":
            buckets.take(key, 0.0)
        assert len(buckets) == 3
        assert [key for key in "acd" if buckets.take(key, 0.0) == 0] == ["a"]


class TestRateLimits:
    GOOD, NEW, WRONG = (Caller.of("10.0.0.1", token) for token in (b"good", b"new", b"wrong"))

    @pytest.fixture
    def limits(self):
        limits = RateLimits(known=Buckets(1.0, 10), strangers=Buckets(1.0, 2))
        limits.answered(self.GOOD, good=True)
        return limits

    def test_what_strangers_do_takes_nothing_from_a_good_token(self, limits):
        """From the same address, whatever they show."""
        for number in range(50):
            limits.admit(Caller.of("10.0.0.1", b"%d" % number), 0.0)
        assert limits.admit(self.NEW, 0.0) > 0
        assert limits.admit(Caller.of("10.0.0.2", b"new"), 0.0) == 0
        assert [limits.admit(self.GOOD, 0.0) == 0 for _ in range(11)] == [True] * 10 + [False]

    def test_a_token_that_is_good_no_more(self, limits):
        limits.answered(self.GOOD, good=False)
        assert [limits.admit(self.GOOD, 0.0) == 0 for _ in range(3)] == [True, True, False]

    def test_no_token_is_never_good(self, limits):
        nobody = Caller.of("10.0.0.1", b"")
        limits.answered(nobody, good=True)
        assert not limits.is_good(nobody)

    def test_nothing_of_a_token_is_kept(self):
        assert b"secret" not in repr(Caller.of("a", b"Bearer secret")).encode()

    @pytest.mark.parametrize(
        ("address", "network"),
        [
            ("10.0.0.1", "10.0.0.1"),
            ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("?", "?"),
        ],
    )
    def test_what_one_subscriber_has(self, address, network):
        assert network_of(address) == network


def test_patience_with_a_body():
    assert body_patience(0, 0.0, grace=30.0, rate=1024.0) == 30.0
    assert body_patience(10 * 1024, 35.0, grace=30.0, rate=1024.0) == 5.0
    assert body_patience(1024, 31.5, grace=30.0, rate=1024.0) < 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_connections_are_counted(steps):
    """Against a list; an end that is told twice, or of one that was not taken, changes nothing."""
    counter, there = ConnectionCounter(total=4, of_address=2), []
    for comes, number in steps:
        address = f"10.0.0.{number % 3}"
        if comes and number not in there:
            allowed = len(there) < 4 and sum(one % 3 == number % 3 for one in there) < 2
            assert counter.add(number, address) == allowed
            there += [number] if allowed else []
        elif not comes:
            counter.remove(number)
            there = [one for one in there if one != number]
    assert sum(counter._counts.values()) == len(counter._open) == len(there)


def test_connections_that_a_process_can_have():
    assert [connections_allowed(10_000, files) for files in (1024, 100, 20_000, -1)] == [768, 1, 10_000, 10_000]


# --- the turnstile, without a network --------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now


class Asking:
    """Requests to a turnstile before a farm that takes the tokens `good`, and reads bodies."""

    def __init__(self, **limits):
        self.clock = Clock()
        self.reached = []
        settings = CoordinatorSettings.load(given={f"limits.{name}": value for name, value in limits.items()})
        self.turnstile = Turnstile(self._farm, settings, version="9.8.7", clock=self.clock)

    async def _farm(self, scope, receive, send):
        shown = dict(scope["headers"]).get(b"authorization", b"")
        status = 200 if shown.startswith(b"Bearer good") or scope["path"].startswith("/static/") else 401
        self.reached.append(scope["path"])
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"} if status == 200 else {"type": "websocket.close", "code": 4401})
            return
        while (await receive()).get("more_body"):
            pass
        await PlainTextResponse("", status)(scope, receive, send)

    def __call__(self, method, path, token="", address="10.0.0.1", body=(b"",), **headers):
        """Return status, headers and body."""
        told = {"authorization": f"Bearer {token}"} if token else {}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "websocket" if method == "WEBSOCKET" else "http",
            "method": method,
            "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
            "client": (address, 1),
            "extensions": {"websocket.http.response": {}},
        }
        parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        parts[-1]["more_body"] = False
        sent = []

        async def receive():
            return parts.pop(0) if parts else await asyncio.get_running_loop().create_future()

        async def send(message):
            sent.append(message)

        asyncio.run(self.turnstile(scope, receive, send))
        first = sent[0]
        return (
            first.get("status", first.get("code", 101)),
            dict(first.get("headers", [])),
            b"".join(one.get("body", b"") for one in sent),
        )


class TestBeforeItIsKnownWhoAsks:
    def test_a_stranger_learns_version_and_health(self):
        """And nothing else is answered before the door: neither a change nor another path."""
        asking = Asking()
        status, _, body = asking("GET", "/api/health")
        assert (status, json.loads(body)) == (200, {"status": "ok", "version": "9.8.7"})
        assert asking("POST", "/api/health")[0] == asking("GET", "/api/health/")[0] == asking("GET", "/api/x")[0] == 401
        assert asking.reached == ["/api/health", "/api/health/", "/api/x"]

    def test_too_many_of_a_stranger(self):
        """With the reason and when to come again; a good token is let in from the same address."""
        asking = Asking(strangers_per_second=0.5, strangers_burst=3)
        assert asking("GET", "/api/status", "good")[0] == 200
        assert [asking("GET", "/api/status", f"bad{number}")[0] for number in range(4)] == [401, 401, 429, 429]
        status, headers, body = asking("GET", "/api/health")
        assert (status, headers[b"retry-after"]) == (429, b"2")
        assert json.loads(body)["error"].startswith("too many requests from here: try again in 2.0 s")
        assert asking("WEBSOCKET", "/ws")[0] == 429
        reached = len(asking.reached)
        assert asking("GET", "/api/status", "good")[0] == 200
        assert asking("GET", "/api/status", "good-new")[0] == 429
        assert asking("GET", "/api/status", "bad", address="10.0.0.2")[0] == 401
        asking.clock.now += json.loads(body)["retry_after"]
        assert asking("GET", "/api/status", "good-new")[0] == 200
        assert len(asking.reached) == reached + 3

    @pytest.mark.parametrize("path", ["/static/live.js", "/sign-in"])
    def test_what_is_the_same_for_everybody_makes_no_token_good(self, path):
        asking = Asking(strangers_per_second=0.1, strangers_burst=2)
        assert [asking("GET", path, "bad")[0] in (200, 401) for _ in range(3)] == [True, True, False]

    def test_too_many_of_a_token(self):
        """But for what workers bring."""
        asking = Asking(requests_per_second=0.5, burst=2)
        assert asking("POST", "/api/tasks/x/logs", "good")[0] == 200
        assert [asking("GET", "/api/status", "good")[0] for _ in range(3)] == [200, 200, 429]
        assert {asking("POST", "/api/tasks/x/logs", "good")[0] for _ in range(20)} == {200}
        assert {asking("POST", "/api/tasks/x/complete", "good")[0] for _ in range(20)} == {200}
        assert asking("GET", "/api/status", "good", address="10.0.0.2")[0] == 200
        asking.clock.now += 2
        assert asking("GET", "/api/status", "good")[0] == 200

    def test_a_socket_makes_its_token_good(self):
        asking = Asking(strangers_per_second=0.1, strangers_burst=1)
        assert [asking("WEBSOCKET", "/ws/worker", "good")[0] for _ in range(3)] == [101, 101, 101]

    def test_a_body_that_is_too_large(self):
        """Said beforehand, or found out while it comes; the reason names the setting."""
        asking = Asking(request_size=1, source_size=2)
        mib = b"x" * (1 << 20)
        for told in ({"content_length": str(len(mib) + 1)}, {}):
            if told:
                status, headers, body = asking("POST", "/api/tasks", "good", body=(mib, b"x"), **told)
                assert (status, headers[b"connection"]) == (413, b"close")
                assert "larger than the 1 MiB that this farm takes here" in json.loads(body)["error"]
            else:
                with pytest.raises(turnstile.HTTPException, match=r"413: .*larger than the 1 MiB"):
                    asking("POST", "/api/tasks", "good", body=(mib, b"x"))
        assert asking("POST", "/api/tasks", "good", body=(mib,))[0] == 200
        assert asking("PUT", "/api/sources/abc", "good", body=(mib, mib))[0] == 200
        assert asking("PUT", "/api/tasks/x/artifacts", "good", content_length=str(100 << 20))[0] == 200
        assert asking("PUT", "/api/tasks/x/artifacts", "good", content_length=str(2 << 30))[0] == 413

    def test_a_body_that_is_too_slow(self, monkeypatch):
        monkeypatch.setattr(turnstile, "BODY_GRACE", 0.01)
        asking = Asking()

        async def never():
            await asyncio.get_running_loop().create_future()

        async def ask():
            body = turnstile._Body(never, 1 << 20, asking.clock)
            await body.receive()

        with pytest.raises(turnstile.HTTPException, match="408: the body of the request came too slowly"):
            asyncio.run(ask())


# --- over sockets ----------------------------------------------------------------------------------------------------


NUM_CHUNKS = 1000


async def _large(_):
    async def chunks():
        for _ in range(NUM_CHUNKS):
            yield b"x" * (1 << 16)

    return StreamingResponse(chunks())


async def _socket(websocket):
    await websocket.accept()
    with contextlib.suppress(Exception):
        await websocket.receive_text()


async def _body(request):
    return PlainTextResponse(str(len(await request.body())))


APP = Starlette(
    routes=[
        Route("/", lambda _: PlainTextResponse("here")),
        Route("/body", _body, methods=["POST"]),
        Route("/large", _large),
        WebSocketRoute("/ws", _socket),
    ]
)


@pytest.fixture
def served():
    """Serves `APP` behind a turnstile with some limits; gives the port. `servers` are those that it has started."""
    with contextlib.ExitStack() as stack:

        def start(**limits):
            settings = CoordinatorSettings.load(given={f"limits.{name}": value for name, value in limits.items()})
            loop, ready = Loop(), Future()
            stack.callback(loop.close)

            async def run():
                listener = listen("127.0.0.1", 0)
                app = Turnstile(APP, settings, version="1")
                server = _Server(server_config(app, Wire.of("127.0.0.1", settings), settings.limits))
                ready.set_result((listener.getsockname()[1], server))
                await server.serve(sockets=[listener])

            running = loop.start(run())
            port, server = ready.result(DEADLINE)
            stack.callback(running.result, DEADLINE)
            stack.callback(loop.loop.call_soon_threadsafe, server.end)
            start.servers.append(server)
            return port

        start.servers = []
        yield start


def answer_to(port, text, timeout=DEADLINE):
    """All that comes back until the other side closes: with a reset, where `text` comes after that."""
    told = []
    with socket.create_connection(("127.0.0.1", port), timeout) as line, contextlib.suppress(ConnectionError):
        line.sendall(text)
        told.extend(iter(lambda: line.recv(65536), b""))
    return b"".join(told)


class TestOverSockets:
    @pytest.mark.parametrize("begun", [b"", b"GET / HT"])
    def test_a_head_that_does_not_come(self, served, monkeypatch, begun):
        monkeypatch.setattr(serving, "HEAD_TIMEOUT", 0.1)
        told = answer_to(served(), begun)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b'{"error": "the head of a request did not come within' in told

    def test_the_head_of_a_later_request(self, served):
        with socket.create_connection(("127.0.0.1", served()), DEADLINE) as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            told = b""
            while not told.endswith(b"here"):
                told += line.recv(65536)
            (connection,) = served.servers[0].server_state.connections
            connection._head._seconds = 0.1
            line.sendall(b"GET / H")
            assert b"".join(iter(lambda: line.recv(65536), b"")).startswith(b"HTTP/1.1 408 ")

    def test_an_answer_that_is_not_taken(self, served, monkeypatch):
        monkeypatch.setattr(serving, "TAKE_TIMEOUT", 0.2)
        port = served()
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.settimeout(DEADLINE)
            line.connect(("127.0.0.1", port))
            line.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            connections = served.servers[0].server_state.connections
            poll_until(
                lambda: line.recv(1, socket.MSG_PEEK) and not connections, DEADLINE, "the connection to be ended"
            )
            told = sum(len(part) for part in iter(lambda: line.recv(1 << 20), b""))
            assert told < NUM_CHUNKS << 16

    def test_connections_of_one_address(self, served):
        """Counted over their whole life, also as WebSockets; one that ends makes room for the next."""
        port = served(connections_per_address=2)

        def status():
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
            try:
                line.request("GET", "/")
                answer = line.getresponse()
                return answer.status, answer.read()
            finally:
                line.close()

        with connect(f"ws://127.0.0.1:{port}/ws"), socket.create_connection(("127.0.0.1", port)):
            _, body = poll_until(lambda: told if (told := status())[0] == 503 else None, DEADLINE, "both to be counted")
            assert "as many connections as it takes" in json.loads(body)["error"]
        poll_until(lambda: status()[0] == 200, DEADLINE, "room")

    def test_a_large_body_is_refused_with_words(self, served):
        """Though the client sends all of it first."""
        port = served(request_size=1)
        connection = Connection((f"http://127.0.0.1:{port}",), "token", patience=DEADLINE)
        with pytest.raises(FarmRefused, match="larger than the 1 MiB") as refused:
            connection.send("POST", "/body", b"x" * (9 << 20))
        assert refused.value.status == 413
        assert connection.send("POST", "/body", b"x" * (1 << 20)) == 1 << 20
        connection.close()

    def test_a_client_waits_as_long_as_it_is_told(self, served):
        """It asks more than is taken at once, and gets all its answers."""
        port = served(requests_per_second=20, burst=1, strangers_burst=1)
        connection = Connection((f"http://127.0.0.1:{port}",), "token", patience=DEADLINE)
        assert [connection.send("POST", "/body", b"x" * length) for length in range(4)] == [0, 1, 2, 3]
        connection.close()


class Line:
    """A transport that notes whether it is read."""

    reads = True

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True


class TestMessagesAhead:
    """A WebSocket is read on while a few messages wait to be taken, and no further: else one peer could fill the memory."""

    @pytest.fixture
    def socket_of(self):
        async def application(scope, receive, send):
            raise AssertionError("nobody connects")

        config = server_config(application, Wire.of("127.0.0.1", CoordinatorSettings()), CoordinatorSettings().limits)

        def made():
            connection = config.ws_protocol_class(
                config=config, server_state=uvicorn.server.ServerState(), app_state={}
            )
            connection.transport = Line()
            return connection

        return made

    def come(self, connection, *sizes):
        for size in sizes:
            connection.frames, connection.curr_msg_data_type = [b"x" * size], "text"
            connection.send_receive_event_to_app()

    def test_many_small_ones(self, socket_of):
        async def scenario():
            connection = socket_of()
            self.come(connection, *[10] * (serving.MESSAGES_AHEAD - 1))
            assert connection.transport.reads
            self.come(connection, 10)
            assert not connection.transport.reads
            for _ in range(serving.MESSAGES_AHEAD):
                assert not connection.transport.reads
                assert (await connection.receive())["text"] == "x" * 10
            assert connection.transport.reads

        asyncio.run(scenario())

    def test_a_long_one(self, socket_of):
        async def scenario():
            connection = socket_of()
            self.come(connection, serving.LONG_MESSAGE + 1)
            assert not connection.transport.reads
            await connection.receive()
            assert connection.transport.reads

        asyncio.run(scenario())

    def test_after_the_end_nothing_is_held_back(self, socket_of):
        """What comes then is thrown away, and the other side's answer to the closing must still be read."""

        async def scenario():
            connection = socket_of()
            connection.close_sent = True
            self.come(connection, serving.LONG_MESSAGE + 1)
            assert connection.transport.reads
            assert connection.queue.empty()

        asyncio.run(scenario())
