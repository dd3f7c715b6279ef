"""What a task can hold, through a real coordinator and a real worker whose commands are processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.security.sealing.sources import put_new_key
from dtf_lightning.farm.server.clients import stdin
from dtf_lightning.farm.tokens import read_token
from support.farm.patience import patience
from support.farm.server import DEADLINE, CoordinatorInThread, WorkerInThread

__all__ = ["patience"]

pytestmark = pytest.mark.process


class Whole:
    """A coordinator, its store, and a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.secrets = folder / "secrets"
        self.secrets.mkdir(mode=0o700)
        (self.secrets / "HF_TOKEN").write_text("hf_verysecret\n")
        (self.secrets / "HF_TOKEN").chmod(0o600)
        self.coordinator = CoordinatorInThread(self.store, folder)
        self.coordinator.loop.start_threads()
        token = read_token(self.coordinator.token_file)
        self.worker = WorkerInThread(self.coordinator.url, token, folder / "worker", "w", secrets=self.secrets)
        with (
            self.coordinator.client() as client
        ):  # threads and connections are there when a task that printed has ended
            client.wait(client.submit(["echo", "ready"]), DEADLINE)

    def close(self) -> None:
        self.worker.close()
        self.coordinator.stop()
        self.store.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    whole = Whole(tmp_path_factory.mktemp("whole"))
    yield whole
    whole.close()


@pytest.fixture
def client(whole):
    with whole.coordinator.client() as client:
        yield client


def new_id() -> str:
    return new_task_id(time.time())


def output(client, task: str) -> bytes:
    return b"".join(client.logs(task))


class TestSecrets:
    def test_are_given_and_masked_and_nowhere_else(self, whole, client):
        """Not in etcd, not in what the API shows, in no file of coordinator or worker."""
        task = client.submit(["sh", "-c", "echo got $HF_TOKEN; test ${#HF_TOKEN} = 13"], secrets=["HF_TOKEN"])
        info = client.wait(task, DEADLINE)
        assert (info.status, output(client, task)) == ("completed", b"got ***\n")
        told = json.dumps([info.raw, client.workers(), list(client.results(task_id=task))])
        assert "verysecret" not in told
        assert "secret:HF_TOKEN" in told
        kept = [kv.value for kv in whole.store.range("/").kvs]
        assert kept
        assert not any(b"verysecret" in value for value in kept)
        files = [path for path in whole.folder.rglob("*") if path.is_file() and path.parent != whole.secrets]
        assert not [path for path in files if b"verysecret" in path.read_bytes()]

    def test_that_no_worker_has(self, client):
        (told,) = client.submit_all(
            [{"task_id": (task := new_id()), "command": ["true"], "secrets": ["HF_TOKEN", "NO_SUCH"]}]
        )
        assert told["warning"] == "none of the 1 workers can do it; the nearest lacks the secret 'NO_SUCH'"
        why = poll_until(lambda: client.task(task).reason, DEADLINE, "the leader to say why")
        assert "no worker has the secret NO_SUCH" in why
        client.cancel(task)


SUBTASKS = """
import os, pathlib
from dtf_lightning.farm import Client
file = pathlib.Path(os.environ["DTF_FARM_TOKEN_FILE"])
assert file.stat().st_mode & 0o777 == 0o600
print("token", file.read_text())
with Client() as farm:
    print(farm.wait(farm.submit(["true"], needs={"cpu": 0.5}), 60).status)
    print(farm.task(os.environ["DTF_FARM_TASK"]).status)
"""


def test_a_task_with_a_token_of_its_own(whole, client):
    """Its command submits a subtask and waits for it; without `permissions` there is no token, and the worker's is not told."""
    task = client.submit([sys.executable, "-c", SUBTASKS], permissions=["submit"], needs={"cpu": 0.5})
    info = client.wait(task, DEADLINE)
    assert (info.status, output(client, task)) == ("completed", b"token ***\ncompleted\nrunning\n")
    (sub,) = list(client.tasks(plan=task))
    assert sub.raw["metadata"]["plan"] == task
    plain = client.submit(["sh", "-c", "env; find $DTF_FARM_WORKSPACE/.. -name token"])
    client.wait(plain, DEADLINE)
    told = output(client, plain).decode()
    assert "DTF_FARM_TASK=" in told
    assert not [
        name
        for name in ("DTF_FARM_TOKEN_FILE", "DTF_FARM_URL", read_token(whole.coordinator.token_file))
        if name in told
    ]
    assert "/token" not in told


def test_secrets_that_the_farm_keeps(tmp_path):
    """A worker that has none itself gets them for its attempt, and masks them in all that comes out: output, metrics, artifacts.

    Also where its process has ended meanwhile, and with it all that it knew.
    """
    keys = tmp_path / "keys"
    put_new_key(keys)
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path, settings={"secrets.key_file": str(keys)})
    token = read_token(coordinator.token_file)
    worker = WorkerInThread(coordinator.url, token, tmp_path / "worker", "w")
    script = (
        "read go; echo got $HF_TOKEN $go; echo $HF_TOKEN > a.txt; test ${#HF_TOKEN} = 13;"
        'echo "{\\"$HF_TOKEN\\": 1, \\"loss\\": 0.5}" > $DTF_FARM_RESULTS/m.jsonl'
    )
    with coordinator.client() as client:
        client.set_secret("HF_TOKEN", "hf_verysecret")
        task = client.submit(["sh", "-ec", script], secrets=["HF_TOKEN"], artifacts=["a.txt"], stdin=True)
        attempt = client.next_attempt(task, 0).revision
        poll_until(lambda: client.task(task).status == "running", DEADLINE, "it to run")
        executor = worker._worker._executor
        executor.close = lambda _: executor.leave()  # as after kill -9: the attempt stays with its keeper
        worker.close()
        worker = WorkerInThread(coordinator.url, token, tmp_path / "worker", "w")
        client.send_stdin(task, 0, b"on\n", complete=True)
        info = client.wait(task, DEADLINE)
        assert (info.status, info.revision, output(client, task)) == ("completed", attempt, b"got *** on\n")
        assert {"***": 1.0, "loss": 0.5}.items() <= info.raw["results"]["metrics"].items()
        assert client.read_artifact(task, "a.txt") == b"***\n"
        told = json.dumps([info.raw, client.workers(), list(client.results(task_id=task)), client.secrets()])
        assert "verysecret" not in told
    worker.close()
    coordinator.stop()
    assert not any(b"verysecret" in kv.value for kv in store.range("/").kvs)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"verysecret" in path.read_bytes()]
    store.close()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TestInputs:
    @pytest.fixture
    def here(self, tmp_path):
        (tmp_path / "data" / "inner").mkdir(parents=True)
        (tmp_path / "data" / "inner" / "a").write_text("A")
        (tmp_path / "data" / "b").write_text("B")
        (tmp_path / "file.txt").write_text("from a file")
        return tmp_path

    def test_of_every_kind(self, whole, client, here):
        """A file and a folder of here, a URL, and a commit, each at its place; all are the task's own to change."""
        (here / "other.bin").write_bytes(b"from a URL")
        repository = here / "repository"
        repository.mkdir()
        (repository / "code.py").write_text("print('from git')")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(repository)]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run([*git, *words], check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        inputs = {
            "in/file": client.send_input(here / "file.txt"),
            "in/data": client.send_input(here / "data"),
            "url": f"file://{here}/other.bin#sha256={digest_of(b'from a URL')}",
            "code": f"git+file://{repository}@{commit}",
        }
        script = "cat in/file url in/data/b in/data/inner/a; python code/code.py; for f in in/file url in/data/b; do echo x > $f; done"
        for _ in range(2):  # the second from the cache, untouched by the first
            task = client.submit(["sh", "-ec", script], inputs=inputs)
            assert client.wait(task, DEADLINE).status == "completed"
            assert output(client, task) == b"from a filefrom a URLBAfrom git\n"

    def test_the_same_bytes_are_sent_once(self, client, here, monkeypatch):
        client.send_input(here / "data")
        os.utime(here / "data" / "b", (1, 1))
        sent = []
        send = client.connection.send
        monkeypatch.setattr(client.connection, "send", lambda *words: (sent.append(words[0]), send(*words))[1])
        client.send_input(here / "data")
        assert sent == ["HEAD"]

    def test_that_the_farm_does_not_have(self, client):
        with pytest.raises(FarmRefused, match="is not here: send it first"):
            client.submit(["true"], inputs={"a": f"sha256:{digest_of(b'nowhere')}"})
        with pytest.raises(FarmRefused, match="must be a path below the task's folder"):
            client.submit(["true"], inputs={"../a": f"file:///a#sha256={digest_of(b'')}"})

    @pytest.mark.parametrize(
        ("reference", "said"),
        [
            (f"file:///no/such#sha256={digest_of(b'x')}", "cannot be read by this worker"),
            (f"file:///etc/hostname#sha256={digest_of(b'x')}", "but what came has"),
            (f"git+file:///no/such@{'0' * 40}", "git fetch"),
        ],
        ids=["not-there", "other-bytes", "no-repository"],
    )
    def test_that_does_not_come_fails_the_task_with_the_reason(self, client, reference, said):
        info = client.wait(client.submit(["true"], inputs={"a": reference}), DEADLINE)
        assert info.status == "failed"
        failures = next(iter(client.results(task_id=info.task_id)))["metadata"]["failed_attempts"]
        assert said in info.reason + "".join(attempt["reason"] for attempt in failures)

    def test_of_a_plan(self, whole, here, monkeypatch, capsys):
        monkeypatch.chdir(here)
        (here / "plan.yaml").write_text(
            "tasks: {t: {run: 'cat d/b f', folder: data, inputs: {d: data, f: file.txt}}, u: {run: cat f, inputs: {f: ./file.txt}}}"
        )
        where = ["--farm", whole.coordinator.url, "--token-file", str(whole.coordinator.token_file)]
        assert main(["farm", "run", *where, "plan.yaml"]) == 0, capsys.readouterr().err
        assert main(["farm", "run", *where, "--no-source", "--input", "x/y=file.txt", "--", "cat", "x/y"]) == 0
        assert "from a file" in capsys.readouterr().out


@contextlib.contextmanager
def reading(file: int):
    """Inside, this process reads its standard input from a file descriptor."""
    saved = os.dup(0)
    os.dup2(file, 0)
    try:
        yield
    finally:
        os.dup2(saved, 0)
        os.close(saved)


class TestStandardInput:
    def test_is_forwarded_to_its_end(self, whole, tmp_path, capfdbinary):
        """To the byte, of a file as of a pipe; the command's own exit code."""
        data = bytes(range(256)) * 2000
        (tmp_path / "data").write_bytes(data)
        where = ["--farm", whole.coordinator.url, "--token-file", str(whole.coordinator.token_file)]
        with (tmp_path / "data").open("rb") as file, reading(file.fileno()):
            assert main(["farm", "run", *where, "--no-source", "--", "sh", "-c", "cat; exit 7"]) == 7
        assert capfdbinary.readouterr().out == data

    def test_a_command_that_reads_no_more_ends_by_itself(self, whole, capfdbinary):
        """The pipe stays open, and nobody waits for it."""
        read, write = os.pipe()
        os.write(write, b"one\ntwo\n")
        where = ["--farm", whole.coordinator.url, "--token-file", str(whole.coordinator.token_file)]
        with reading(read):
            assert main(["farm", "run", *where, "--no-source", "--", "head", "-n", "1"]) == 0
        assert capfdbinary.readouterr().out == b"one\n"
        os.close(write)
        os.close(read)

    def test_what_is_too_much_is_said(self, whole, client, monkeypatch, tmp_path, capfd):
        monkeypatch.setattr(stdin, "MAX_STDIN", 100_000)
        (tmp_path / "data").write_bytes(bytes(200_000))
        where = ["--farm", whole.coordinator.url, "--token-file", str(whole.coordinator.token_file)]
        with (tmp_path / "data").open("rb") as file, reading(file.fileno()):
            assert main(["farm", "run", *where, "--no-source", "--", "sh", "-c", "cat > /dev/null"]) == 130
        assert "put it into a file" in capfd.readouterr().err

    def test_a_try_again_reads_the_same(self, whole, client):
        """Another attempt, and a task that is submitted again."""
        task = client.submit(["sh", "-c", "cat; exit 1"], retries=1, stdin=True)
        client.send_stdin(task, 0, b"the whole ")
        client.send_stdin(task, 10, b"input", complete=True)
        assert client.wait(task, DEADLINE).raw["metadata"]["attempt"] == 2
        assert output(client, task) == b"the whole input"
        again = client.retry(task)
        client.wait(again, DEADLINE)
        assert output(client, again) == b"the whole input"
        with pytest.raises(FarmRefused, match="nobody reads its standard input"):
            client.send_stdin(task, 15, b"more")

    def test_a_coordinators_death_loses_nothing_of_it(self, tmp_path):
        """The second one has what the first one took, and both worker and client go on with it."""
        store = MemoryStore()
        first, second = (CoordinatorInThread(store, tmp_path, name=name) for name in ("c1", "c2"))
        urls = f"{first.url},{second.url}"
        worker = WorkerInThread(urls, read_token(first.token_file), tmp_path / "worker", "w")
        with Client(urls, first.token_file) as client:
            task = client.submit(["cat"], stdin=True)
            client.send_stdin(task, 0, b"before ")
            client.next_attempt(task, 0)
            first.stop()
            client.send_stdin(task, 0, b"before ")  # as after a lost answer
            client.send_stdin(task, 7, b"after", complete=True)
            assert client.wait(task, DEADLINE).status == "completed"
            assert output(client, task) == b"before after"
        worker.close()
        second.stop()
        store.close()

    def test_a_worker_that_is_started_anew_goes_on_with_it(self, tmp_path):
        """Its attempt runs on meanwhile, and misses nothing of what came in between."""
        store = MemoryStore()
        coordinator = CoordinatorInThread(store, tmp_path)
        token = read_token(coordinator.token_file)
        worker = WorkerInThread(coordinator.url, token, tmp_path / "worker", "w")
        with coordinator.client() as client:
            task = client.submit(["cat"], stdin=True)
            client.send_stdin(task, 0, b"before ")
            attempt = client.next_attempt(task, 0).revision
            assert next(client.logs(task, follow=True)) == b"before "
            executor = worker._worker._executor
            executor.close = lambda _: executor.leave()  # as after kill -9: the attempt stays with its keeper
            worker.close()
            client.send_stdin(task, 7, b"between ")
            worker = WorkerInThread(coordinator.url, token, tmp_path / "worker", "w")
            client.send_stdin(task, 15, b"after", complete=True)
            info = client.wait(task, DEADLINE)
            assert (info.status, info.revision) == ("completed", attempt)
            assert output(client, task) == b"before between after"
        worker.close()
        coordinator.stop()
        store.close()


def test_under_one_key_it_runs_once(whole, tmp_path, capfdbinary):
    """Whoever comes later sees the same output and exit code, though the pipe that he has open is not the task's."""
    where = ["--farm", whole.coordinator.url, "--token-file", str(whole.coordinator.token_file)]
    command = ["sh", "-c", f"echo once | tee -a {tmp_path}/runs; exit 5"]
    read, write = os.pipe()
    for _ in range(2):
        with reading(read):
            assert main(["farm", "run", *where, "--no-source", "--key", "nightly", "--", *command]) == 5
        assert capfdbinary.readouterr().out == b"once\n"
    os.close(write)
    os.close(read)
    assert (tmp_path / "runs").read_text() == "once\n"
