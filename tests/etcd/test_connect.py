"""Endpoints at which there is no etcd to work with: each error says what was tried, what was found, what to do."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.etcd import connect, connection
from dtf_lightning.etcd.endpoints import Endpoints
from dtf_lightning.etcd.server.cluster import EtcdCluster, Member
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd, find_etcd
from dtf_lightning.etcd.wire import messages as pb


@pytest.fixture
def nobody() -> Iterator[str]:
    """An endpoint at which nothing listens."""
    with socket.socket() as placeholder:
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # nothing, but for who does the same
        placeholder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{placeholder.getsockname()[1]}"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def endpoint_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_nothing_listens(nobody: str):
    with pytest.raises(StoreUnavailable, match=rf"Tried {nobody}: nothing listens there.*`dtf etcd` starts an etcd"):
        connect(nobody, timeout=0.3)


def test_several_endpoints_are_told_one_by_one(nobody: str, tmp_path: Path):
    with pytest.raises(StoreUnavailable) as caught:
        connect(f"{nobody},unix:{tmp_path}/no.sock", timeout=0.3)
    assert f"{nobody}: nothing listens there" in str(caught.value)
    assert f"unix:{tmp_path}/no.sock: there is no such socket" in str(caught.value)


def test_an_unknown_host():
    with pytest.raises(StoreUnavailable, match=r"etcd\.invalid:2379: the host name cannot be resolved"):
        connect("etcd.invalid", timeout=0.3)


def test_etcd_comes_up_later(nobody: str):
    """connect waits for it, within its timeout."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(connect, nobody, timeout=60, quiet=True)
        with EmbeddedEtcd(port=int(nobody.rpartition(":")[2])):
            waiting.result(60).close()


def test_a_silent_server(listener: socket.socket):
    with pytest.raises(StoreUnavailable, match="takes connections but says nothing"):
        connect(endpoint_of(listener), timeout=0.3)


def test_a_web_server():
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with pytest.raises(SettingsError, match="is a plain web server"):
                connect(endpoint_of(server.socket))
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pretender() -> Iterator[tuple[str, dict[str, str]]]:
    """A gRPC server that says of itself, when asked as etcd, what `said["version"]` holds; nothing if it is not set."""
    said: dict[str, str] = {}

    def status(_request: object, context: grpc.ServicerContext) -> object:
        if "version" not in said:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown service etcdserverpb.Maintenance")
        return pb.StatusResponse(version=said["version"])

    def answer(_request: object, _context: grpc.ServicerContext) -> object:
        return pb.RangeResponse(header={"revision": 1})

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        for service, method, function, request, response in (
            ("Maintenance", "Status", status, pb.StatusRequest, pb.StatusResponse),
            ("KV", "Range", answer, pb.RangeRequest, pb.RangeResponse),
        ):
            handler = grpc.unary_unary_rpc_method_handler(function, request.FromString, response.SerializeToString)
            generic = grpc.method_handlers_generic_handler(f"etcdserverpb.{service}", {method: handler})
            server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", said
        server.stop(None).wait()


def test_another_grpc_server(pretender: tuple[str, dict[str, str]]):
    endpoint, _ = pretender
    with pytest.raises(SettingsError, match="is no etcd v3 server"):
        connect(endpoint)


def test_too_old(pretender: tuple[str, dict[str, str]]):
    endpoint, said = pretender
    said["version"] = "3.3.27"
    with pytest.raises(SettingsError, match=r"is version 3\.3\.27, which is too old: 3\.5\.13 or newer"):
        connect(endpoint)


@pytest.mark.parametrize(
    ("version", "warned"),
    [("3.4.3", True), ("3.4.22", False), ("3.5.12", True), ("3.5.13", False), ("3.6.4", False), ("4.0.0-rc.1", False)],
)
def test_warned_about(pretender, version: str, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch):
    """An etcd of this machine is not: `dtf etcd` has said it once, and every node would say it again."""
    endpoint, said = pretender
    said["version"] = version
    with caplog.at_level(logging.WARNING):
        connect(endpoint).close()
        assert not caplog.text
        monkeypatch.setattr(Endpoints, "on_this_machine", False)
        connect(endpoint).close()
    assert (f"etcd {version} is for local runs" in caplog.text) is warned
    caplog.clear()
    connect(endpoint, quiet=True).close()
    assert not caplog.text


@pytest.mark.process
def test_no_quorum(etcd_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch):
    """One of three members is left: it answers (in its time, which is not what is short here), but cannot serve."""
    first_answer = connection._first_answer
    monkeypatch.setattr(connection, "_first_answer", lambda client, deadline: first_answer(client, deadline + 60))
    left, *gone = etcd_cluster.members
    for member in gone:
        member.kill()
    with pytest.raises(StoreUnavailable, match=r"is running, but does not serve: .*quorum.*Start the missing members"):
        connect(left.endpoint, timeout=0.5, quiet=True)


@pytest.mark.process
def test_a_frozen_server(etcd_cluster: EtcdCluster):
    """With others beside it, it is passed over; alone, it is called silent."""
    frozen, *_ = etcd_cluster.members
    frozen.freeze()
    connect(etcd_cluster.endpoint, timeout=60, quiet=True).close()
    with pytest.raises(StoreUnavailable, match="takes connections but says nothing"):
        connect(frozen.endpoint, timeout=0.3)


def test_a_unix_socket(tmp_path_factory: pytest.TempPathFactory):
    """etcd's own `unix://name:port` makes a file `name:port` in its working directory."""
    with EtcdCluster(0) as cluster:
        member = Member("m", cluster.directory, "m=unix://m:1", find_etcd(), ("--listen-client-urls", "unix://c:1"))
        try:
            member.start()
            path = cluster.directory / "c:1"
            with connect(f"unix:{path}", quiet=True) as store:
                store.put("/k", b"v")
                assert store.get("/k").value == b"v"
            with connect(f"unix://{path}", quiet=True) as store:
                assert store.get("/k").value == b"v"
        finally:
            member.close()


def test_nothing_heavy_is_imported():
    """Every process that torch starts imports the package; only connect() may load grpc."""
    code = (
        "import sys, dtf_lightning.etcd, dtf_lightning.etcd.store, dtf_lightning.etcd.connection, "
        "dtf_lightning.etcd.memory.store, dtf_lightning.etcd.server.embedded, dtf_lightning.etcd.election\n"
        "from dtf_lightning.etcd import connect\n"
        "assert not {'grpc', 'google.protobuf'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_call_is_told_with_its_deadline():
    """After the server has gone: what was attempted, for how long, how often."""
    with EmbeddedEtcd() as own, connect(own.endpoint, quiet=True) as store:
        own.stop()
        told = rf"get '/k': no answer from etcd at {own.endpoint} within \d+\.\d s, \d+ attempts?"
        with pytest.raises(StoreUnavailable, match=told):
            store.get("/k", timeout=0.3)
