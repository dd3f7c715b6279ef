"""What providers of workers do: each beside the real thing, or a fake of its API."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from dtf_lightning.farm.scaling.hook import HookProvider
from dtf_lightning.farm.scaling.kubernetes import KubernetesProvider
from dtf_lightning.farm.scaling.provider import ProviderFailed, WorkersWanted
from dtf_lightning.farm.scaling.torchx_pilots import TorchxProvider

WANTED = WorkersWanted(
    pool="cpu",
    names=("cpu-1", "cpu-2"),
    total=3,
    devices={"cpu": 2.0, "memory": 500.0},
    labels=("ssd", "pool=cpu"),
    coordinator="http://farm:8080",
    token_file="/run/token",
    timeout=30.0,
)
WORDS = [
    "farm",
    "worker",
    "--name",
    "cpu-1",
    "--coordinator",
    "http://farm:8080",
    "--token-file",
    "/run/token",
    "--cpus",
    "2",
    "--memory",
    "500",
    "--label",
    "ssd",
    "--label",
    "pool=cpu",
    "--until-idle",
    "3600",
]


def test_the_command_of_a_worker_is_one_of_ours():
    """What providers start is read by the parser of `dtf`."""
    from dtf_lightning.__main__ import build_parser

    told = build_parser().parse_args(WANTED.words("cpu-1"))
    assert WANTED.words("cpu-1") == WORDS
    assert (told.named, told.cpus, told.label, told.until_idle) == ("cpu-1", 2.0, ["ssd", "pool=cpu"], 3600.0)


@pytest.mark.process
def test_a_hook_is_told_by_its_standard_input(tmp_path):
    told = tmp_path / "told"
    HookProvider((sys.executable, "-c", f"import sys; open({str(told)!r}, 'w').write(sys.stdin.read())")).start(WANTED)
    said = json.loads(told.read_text())
    assert (said["action"], said["pool"], said["total"]) == ("start", "cpu", 3)
    assert said["workers"][0] == {"name": "cpu-1", "command": ["dtf", *WORDS]}
    assert (said["devices"], said["labels"]) == ({"cpu": 2.0, "memory": 500.0}, ["ssd", "pool=cpu"])


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "timeout", "reason"),
    [
        (("/bin/sh", "-c", "echo first >&2; echo no quota >&2; exit 3"), 30.0, "/bin/sh ended with 3: no quota"),
        (("/bin/sh", "-c", "exit 1"), 30.0, "/bin/sh ended with 1: it said nothing on its standard error"),
        (("/bin/sh", "-c", "sleep 600"), 0.1, "/bin/sh has not ended within 0.1 s and was killed"),
        (("/nowhere/at/all",), 30.0, "/nowhere/at/all cannot be run: No such file or directory"),
    ],
)
def test_a_hook_that_fails(command, timeout, reason):
    with pytest.raises(ProviderFailed) as failed:
        HookProvider(command).start(replace(WANTED, timeout=timeout))
    assert str(failed.value) == reason


# --- Kubernetes ---------------------------------------------------------------------------------------------------------


@dataclass
class FakeApi:
    """An API server with one StatefulSet."""

    url: str = ""
    replicas: int = 1
    autoscalers: list = field(default_factory=list)
    refuses: str = ""
    asked: list = field(default_factory=list)

    def answer(self, method: str, path: str, headers, body: str) -> tuple[int, dict]:
        self.asked.append(
            (method, path.rpartition("/namespaces/")[2], headers["Content-Type"], headers["Authorization"])
        )
        if path == "/apis/autoscaling/v2/namespaces/farm/horizontalpodautoscalers":
            return 200, {"items": self.autoscalers}
        if path != "/apis/apps/v1/namespaces/farm/statefulsets/workers/scale":
            return 404, {"kind": "Status", "message": f"{path} not found"}
        if method == "PATCH":
            if self.refuses:
                return 403, {"kind": "Status", "message": self.refuses}
            self.replicas = json.loads(body)["spec"]["replicas"]
        return 200, {"kind": "Scale", "spec": {"replicas": self.replicas}}


@contextmanager
def api_server():
    api = FakeApi()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
            status, told = api.answer(self.command, self.path, self.headers, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = _do  # noqa: N815  as the library calls them

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def account(tmp_path):
    (tmp_path / "token").write_text("of the pod\n")
    return tmp_path


def test_kubernetes_is_asked_for_a_number(account):
    """Twice the same is once; it is never lowered by a start, nor raised by an end."""
    with api_server() as api:
        provider = KubernetesProvider(api.url, "farm", "workers", account)
        provider.start(WANTED)
        assert api.replicas == 3
        patch = ("PATCH", "farm/statefulsets/workers/scale", "application/merge-patch+json", "Bearer of the pod")
        assert [one for one in api.asked if one[0] == "PATCH"] == [patch]
        provider.start(WANTED)
        provider.start(replace(WANTED, total=2))
        provider.end(replace(WANTED, total=5))
        assert (api.replicas, sum(one[0] == "PATCH" for one in api.asked)) == (3, 1)
        provider.end(replace(WANTED, total=1))
        assert api.replicas == 1


def test_kubernetes_that_refuses(account):
    with api_server() as api:
        provider = KubernetesProvider(api.url, "farm", "workers", account)
        api.refuses = "the service account may not patch statefulsets/scale"
        with pytest.raises(ProviderFailed, match="403 the service account may not patch"):
            provider.start(WANTED)
        with pytest.raises(ProviderFailed, match=r"404 .* not found"):
            KubernetesProvider(api.url, "farm", "others", account).start(WANTED)
        api.autoscalers = [
            {"metadata": {"name": "own"}, "spec": {"scaleTargetRef": {"kind": "StatefulSet", "name": "workers"}}}
        ]
        for ask in (provider.start, provider.end):
            with pytest.raises(ProviderFailed, match="own autoscaler 'own' has the StatefulSet workers"):
                ask(WANTED)
        with pytest.raises(ProviderFailed, match="a pod's token and certificate are not in"):
            KubernetesProvider(api.url, "farm", "workers", account / "none").start(WANTED)
    with pytest.raises(ProviderFailed, match="does not answer"):
        provider.start(WANTED)


# --- TorchX -------------------------------------------------------------------------------------------------------------


class FakeRunner:
    """As torchx's, as far as it is used: each job that was run."""

    def __init__(self) -> None:
        self.jobs: list = []
        self.refuses = ""

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def scheduler_run_opts(self, scheduler: str):
        return SimpleNamespace(cfg_from_str=lambda text: {"of": scheduler, "told": text})

    def run(self, app, scheduler: str, cfg) -> str:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.jobs.append((app, scheduler, cfg))
        return f"{scheduler}://{app.name}"


def test_torchx_runs_a_pilot_for_each_worker(monkeypatch):
    runner = FakeRunner()
    specs = SimpleNamespace(Resource=SimpleNamespace, Role=SimpleNamespace, AppDef=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "torchx.specs", specs)
    monkeypatch.setitem(sys.modules, "torchx.runner", SimpleNamespace(get_runner=lambda: runner))
    provider = TorchxProvider("slurm", {"partition": "gpu", "time": "60"}, "image")
    provider.start(WANTED)
    (app, scheduler, options), _ = runner.jobs
    (role,) = app.roles
    assert (app.name, role.entrypoint, role.args, role.num_replicas) == ("cpu-1", "dtf", WORDS, 1)
    assert (role.resource.cpu, role.resource.gpu, role.resource.memMB, role.image) == (2, 0, 500, "image")
    assert (scheduler, options) == ("slurm", {"of": "slurm", "told": "partition=gpu,time=60"})
    runner.refuses = "sbatch: invalid partition"
    with pytest.raises(ProviderFailed, match="torchx's slurm refuses: sbatch: invalid partition"):
        provider.start(WANTED)


def test_without_torchx(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchx.specs", None)
    with pytest.raises(ProviderFailed, match="torchx is not installed"):
        TorchxProvider("slurm", {}, "").start(WANTED)
