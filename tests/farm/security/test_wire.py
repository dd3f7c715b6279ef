"""A farm over TLS: everything goes over it, and what is wrong with it is told at once and in plain words."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import ssl
import threading
from urllib.parse import urlsplit

import pytest

from dtf_lightning import __version__
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import Connection, FarmRefused, FarmUntrusted
from dtf_lightning.farm.security.certificates import TlsFiles, server_context
from dtf_lightning.farm.security.trust import Trust, speaks_tls
from dtf_lightning.farm.server.wire.client_certificates import is_of_workers
from dtf_lightning.farm.sign_in import SignIn
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.farm.updates import follow
from support.farm.app import farm_app
from support.farm.browsing import Browsing
from support.farm.certificates import Lab, tls_settings
from support.farm.server import CoordinatorInThread, PlayedWorker

DEADLINE = 60.0


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Another lab's authority."""
    return Lab(tmp_path_factory.mktemp("stranger") / "certificates")


@pytest.fixture
def client(coordinator, lab):
    with coordinator.client(lab.ca) as client:
        yield client


def ask(coordinator, trust, method="GET", path="/", body=None, **headers):
    """One request as a browser sends it: its answer, with the body read, and the server's certificate."""
    parts = urlsplit(coordinator.url)
    line = http.client.HTTPSConnection("127.0.0.1", parts.port, context=trust.context(), timeout=DEADLINE)
    try:
        line.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        certificate = line.sock.getpeercert(binary_form=True)
        answer = line.getresponse()
        answer.text = answer.read().decode()
        return answer, certificate
    finally:
        line.close()


class TestEverything:
    def test_a_tasks_life(self, coordinator, client, lab):
        """Submitted, followed, run by a worker over wss, its output read: all under the address that it advertises."""
        assert coordinator.url.startswith("https://127.0.0.1:")
        worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file), trust=lab.trust)
        try:
            task = client.submit(["true"])
            order = worker.next()
            worker.start(order)
            assert worker.write(order, 0, b"hello\n") == 6
            worker.end(order)
            assert [info.status for info in client.as_completed([task])] == ["completed"]
            assert b"".join(client.logs(task)) == b"hello\n"
        finally:
            worker.close()

    def test_the_pages_cookie_goes_over_tls_alone(self, coordinator, lab):
        token = read_token(coordinator.token_file)

        def sign_in(origin):
            kind = "application/x-www-form-urlencoded"
            body = f"token={token}"
            return ask(coordinator, lab.trust, "POST", "/sign-in", body, Origin=origin, Content_Type=kind)[0]

        answer = sign_in(coordinator.url)
        cookie = answer.getheader("set-cookie")
        assert answer.status == 200
        assert cookie.startswith(SignIn(token).cookie)
        assert {"secure", "httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
        assert sign_in(coordinator.url.replace("https", "http")).status == 403

    @pytest.mark.parametrize(("host", "status"), [("localhost", 303), ("127.0.0.1:1", 303), ("a.lab", 403), ("", 403)])
    def test_under_names_of_the_certificate_alone(self, coordinator, lab, host, status):
        assert ask(coordinator, lab.trust, Host=host, Accept="text/html")[0].status == status

    def test_a_stranger_learns_version_and_health(self, coordinator, lab):
        """Under any name, as a load balancer asks; and nothing of the rest."""
        answer, _ = ask(coordinator, lab.trust, path="/api/health", Host="10.1.2.3")
        assert (answer.status, json.loads(answer.text)) == (200, {"status": "ok", "version": __version__})
        assert answer.getheader("server") is None
        with farm_app() as app:
            paths = {(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()}
        for method, path in sorted(
            paths | {("GET", path) for path in ("/", "/tasks", "/fleet", "/cluster", "/nothing")}
        ):
            told, _ = ask(coordinator, lab.trust, method, re.sub(r"{[^}]*}", "x", path))
            assert told.status == 401, (method, path)
            assert method == "HEAD" or set(json.loads(told.text)) == {"error"}
            assert __version__ not in told.text

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
    def test_nothing_older_than_tls_1_2(self, coordinator, lab):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(lab.ca)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        address = ("localhost", urlsplit(coordinator.url).port)
        with socket.create_connection(address) as line, pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(line, server_hostname="localhost")


@pytest.fixture
def servers():
    """Starts servers that do nothing but handshakes; `shakes` counts the connections of each."""
    with contextlib.ExitStack() as stack:

        def start(context):
            listener = socket.create_server(("127.0.0.1", 0))
            shakes = []

            def serve():
                while True:
                    try:
                        line, _ = listener.accept()
                    except OSError:
                        return
                    shakes.append(1)
                    with line, contextlib.suppress(OSError):
                        line.settimeout(DEADLINE)
                        if context is None:
                            line.recv(1)
                            line.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                        else:
                            context.wrap_socket(line, server_side=True).close()

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            stack.callback(thread.join, DEADLINE)
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return f"https://127.0.0.1:{listener.getsockname()[1]}", shakes

        yield start


def context_of(made):
    return server_context(TlsFiles(cert=made.cert, key=made.key))


class TestFaults:
    """Each is told after one try, and to a worker as to a client."""

    def check(self, url, trust, told, shakes=None):
        connection = Connection((url,), "token", trust=trust, patience=DEADLINE)
        with pytest.raises(FarmUntrusted, match=told):
            connection.ask("GET", "/api/status")
        assert shakes is None or len(shakes) == 1
        with pytest.raises(FarmUntrusted, match=told):
            next(follow(connection, "task_updates", {}))
        connection.close()
        worker = PlayedWorker((url,), "token", trust=trust)
        try:
            assert told.partition(".*")[0] in str(worker.error())
        finally:
            worker.close()

    def test_an_unknown_authority(self, servers, lab, stranger):
        url, shakes = servers(context_of(lab.issue("one")))
        self.check(url, stranger.trust, "the authority of its certificate is not the one in .*--ca FILE or", shakes)
        self.check(url, Trust(), "the authority of its certificate is none that this machine knows.*--ca FILE or")

    def test_another_name(self, servers, lab):
        url, shakes = servers(context_of(lab.issue("other", "other.lab", "10.0.0.5")))
        told = "its certificate does not hold the name 127.0.0.1 .*cert issue NAME --host 127.0.0.1"
        self.check(url, lab.trust, told, shakes)

    def test_an_old_one(self, servers, lab):
        url, shakes = servers(context_of(lab.issue("old", days=1, before=2)))
        self.check(url, lab.trust, "its certificate has expired: issue a new one", shakes)

    def test_one_that_is_to_come(self, servers, lab):
        url, shakes = servers(context_of(lab.issue("early", days=9, before=-3)))
        self.check(url, lab.trust, "its certificate is not good yet: are the clocks", shakes)

    def test_https_to_a_port_without_tls(self, servers, lab):
        url, shakes = servers(None)
        self.check(url, lab.trust, "no TLS is spoken there: write http://", shakes)

    def test_http_to_a_port_with_tls(self, coordinator, lab):
        url = coordinator.url.replace("https", "http")
        self.check(url, lab.trust, "TLS is spoken there: write https://")
        assert speaks_tls(url)

    def test_a_good_one_beside_a_bad_one(self, coordinator, servers, lab):
        """One coordinator's certificate that has expired does not take the farm away."""
        url, _ = servers(context_of(lab.issue("old", days=1, before=2)))
        with Client(f"{url},{coordinator.url}", coordinator.token_file, ca=lab.ca) as client:
            assert client.status()["farm"] == "f"

    def test_files_that_are_not_there(self, tmp_path, lab):
        bad = tmp_path / "bad.pem"
        bad.write_text("hello")
        for trust, told in (
            ({"ca": tmp_path / "no.pem"}, "authority, .*no.pem, cannot be read: No such file"),
            ({"ca": bad}, "holds no certificate of an authority"),
            ({"ca": lab.ca, "cert": bad, "key": bad}, "cannot be used"),
        ):
            with pytest.raises(SettingsError, match=told):
                Connection(("https://127.0.0.1:1",), "token", trust=Trust(**trust)).ask("GET", "/")
        with pytest.raises(SettingsError, match="given without its key"):
            Trust(cert=bad)


class TestNewCertificates:
    """The files change while the coordinator runs."""

    @pytest.fixture
    def running(self, lab, tmp_path):
        lab.issue("turning")
        store = MemoryStore()
        coordinator = CoordinatorInThread(store, tmp_path, settings=tls_settings(lab.issue("turning")))
        yield coordinator
        coordinator.stop()
        store.close()

    def test_are_taken_by_new_connections(self, running, lab, caplog):
        """One that is open goes on; a broken new one is told in the log, and the old one stays until a good one comes."""
        with running.client(lab.ca) as open_before:
            assert open_before.status()["farm"] == "f"
            socket_before = open_before.connection._local.line.connection.sock
            _, first = ask(running, lab.trust)
            made = lab.issue("turning", "localhost", "127.0.0.1", "new.lab")
            _, second = ask(running, lab.trust)
            assert first != second
            assert ask(running, lab.trust, Host="new.lab", Accept="text/html")[0].status == 303
            good = made.cert.read_bytes()
            with caplog.at_level(logging.ERROR):
                for broken in (b"", good[:200], lab.issue("other").cert.read_bytes()):
                    made.cert.write_bytes(broken)
                    assert ask(running, lab.trust)[1] == second
                    assert ask(running, lab.trust)[1] == second
                made.cert.unlink()
                assert ask(running, lab.trust)[1] == second
            told = [record.message for record in caplog.records if "the new TLS files are not used" in record.message]
            assert len(told) == 4  # once for each
            lab.issue("turning")
            assert ask(running, lab.trust)[1] not in (first, second)
            assert open_before.status()["farm"] == "f"
            assert open_before.connection._local.line.connection.sock is socket_before


@pytest.fixture(scope="module")
def asking(lab, memory, tmp_path_factory):
    settings = tls_settings(lab.issue("asking")) | {"security.client_ca": str(lab.ca)}
    coordinator = CoordinatorInThread(memory, tmp_path_factory.mktemp("asking"), farm="asking", settings=settings)
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()


class TestWorkersCertificates:
    """A coordinator with an authority of clients: what only workers ask for needs a certificate of it."""

    def test_one_with_a_certificate(self, asking, lab):
        """Others come without one to the same port."""
        token = read_token(asking.token_file)
        worker = PlayedWorker((asking.url,), token, trust=lab.client())
        try:
            with asking.client(lab.ca) as client:
                task = client.submit(["true"])
                order = worker.next()
                assert worker.write(order, 0, b"hello") == 5
                worker.end(order)
                assert client.wait(task, DEADLINE).status == "completed"
                with pytest.raises(FarmRefused, match="needs a certificate of its authority"):
                    client.connection.send("POST", f"/api/tasks/{task}/logs", b"x", revision=order.revision, offset=5)
        finally:
            worker.close()

    def test_one_without(self, asking, lab):
        worker = PlayedWorker((asking.url,), read_token(asking.token_file), name="bare", trust=lab.trust)
        try:
            assert "HTTP 403): a worker of this farm needs a certificate of its authority: give" in str(worker.error())
        finally:
            worker.close()

    def test_one_of_another_authority(self, asking, lab, stranger):
        theirs = stranger.client()
        trust = Trust(ca=lab.ca, cert=theirs.cert, key=theirs.key)
        connection = Connection((asking.url,), "token", trust=trust, patience=DEADLINE)
        with pytest.raises(FarmUntrusted, match="does not take the client certificate"):
            connection.ask("GET", "/api/status")
        connection.close()
        worker = PlayedWorker((asking.url,), read_token(asking.token_file), name="theirs", trust=trust)
        try:
            assert "does not take the client certificate" in str(worker.error())
        finally:
            worker.close()

    def test_what_is_workers_alone(self):
        """Every route whose operation is a worker's, and no other."""
        with farm_app() as app:
            of_workers = {
                (method, route.path)
                for route in app.routes
                for method in getattr(route, "methods", None) or ("WEBSOCKET",)
                if is_of_workers(method, re.sub(r"{[^}]*}", "x", route.path))
            }
            expected = {
                (method, route.path)
                for route in app.routes
                for method in getattr(route, "methods", None) or ("WEBSOCKET",)
                for operation in [getattr(route, "operation_id", None) or route.name]
                if operation.startswith(("attempt.", "subtask."))
                or operation in ("worker.connect", "worker.register", "worker.tasks", "worker.health")
            }
        assert of_workers == expected


class TestAtTheStart:
    """A coordinator that could serve nobody does not start."""

    @pytest.mark.parametrize(
        ("days", "before", "told"),
        [(1, 2, "has expired 1.0 days ago"), (9, -3, "is not good before 3.0 days from now")],
    )
    def test_a_certificate_that_is_no_use(self, lab, tmp_path, days, before, told):
        made = lab.issue("useless", days=days, before=before)
        with pytest.raises(SettingsError, match=told):
            CoordinatorInThread(MemoryStore(), tmp_path, settings=tls_settings(made))

    def test_a_clients_one(self, lab, tmp_path):
        made = lab.issue("w", client=True)
        with pytest.raises(SettingsError, match="holds no host's name"):
            CoordinatorInThread(MemoryStore(), tmp_path, settings=tls_settings(made))

    def test_files_that_do_not_fit(self, lab, tmp_path):
        settings = tls_settings(lab.issue("a"))
        with pytest.raises(SettingsError, match="cannot be used together: key values mismatch"):
            CoordinatorInThread(
                MemoryStore(), tmp_path, settings=settings | {"security.tls_key": str(lab.issue("b").key)}
            )
        with pytest.raises(SettingsError, match="tls_cert was given alone"):
            CoordinatorInThread(MemoryStore(), tmp_path, settings={"security.tls_cert": settings["security.tls_cert"]})

    def test_everywhere_without_tls(self, tmp_path):
        with pytest.raises(SettingsError, match="there is no TLS"):
            CoordinatorInThread(MemoryStore(), tmp_path, host="0.0.0.0")


def test_without_tls_everybody_is_told(tmp_path):
    """`dtf farm status` and the page's screen Cluster say it; the address that it listens on is served."""
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path, host="127.0.0.2", settings={"security.insecure": True})
    try:
        assert coordinator.url.startswith("http://127.0.0.2:")
        browsing = Browsing(coordinator.url, read_token(coordinator.token_file))
        for path in ("/api/status", "/cluster"):
            assert "serves 127.0.0.2 without TLS (--insecure)" in browsing.get(path).text
        assert browsing.ask("GET", "/api/status", Host="other.lab").status == 403
    finally:
        coordinator.stop()
        store.close()
