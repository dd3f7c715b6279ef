"""`dtf farm secret`: who may set one, where it lies, which worker gets it and when, and what happens with keys."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import Connection, FarmRefused
from dtf_lightning.farm.security.sealing.sources import put_new_key
from dtf_lightning.farm.server.secrets.secret_keeper import check_secret
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread

pytestmark = pytest.mark.process

VALUE = "hf_verysecret"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("farm")


@pytest.fixture(scope="module")
def keys(folder):
    path = folder / "secrets.key"
    put_new_key(path)
    return path


@pytest.fixture(scope="module")
def memory():
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture(scope="module")
def coordinator(memory, folder, keys):
    coordinator = CoordinatorInThread(memory, folder, settings={"secrets.key_file": str(keys)})
    coordinator.loop.start_threads()
    with coordinator.client() as client:
        for project in ("mine", "others"):
            client.set_project(project)
        client.create_token("viewer")  # the farm has a key that signs
    yield coordinator
    coordinator.stop()


@pytest.fixture
def client(coordinator):
    with coordinator.client() as client:
        yield client
        for one in client.secrets():
            client.remove_secret(one["name"], project=one["project"])


@pytest.fixture
def dtf(coordinator, capsys):
    def ask(*words):
        code = main(["farm", *words, "--farm", coordinator.url, "--token-file", str(coordinator.token_file)])
        told = capsys.readouterr()
        return code, told.out + told.err

    return ask


@pytest.fixture
def of(client, coordinator, tmp_path):
    """A client with a token of this role."""

    def connect(role, **fields):
        file = tmp_path / f"{role}.token"
        file.write_text(client.create_token(role, subject=role, **fields)["token"])
        file.chmod(0o600)
        return Client(coordinator.url, file)

    return connect


def asked_by(connection, order):
    return connection.ask("POST", f"/api/tasks/{order.task}/secrets", revision=order.revision)["secrets"]


def audit_of(coordinator):
    return [json.loads(line) for line in coordinator.audit.read_text().splitlines()]


def everything_kept(memory, folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join([*(kv.value for kv in memory.range("/").kvs), *(path.read_bytes() for path in files)])


def test_set_list_remove(dtf, client, coordinator, memory, folder, tmp_path):
    """The value comes from a file or standard input, and nothing shows it again: no list, no record, no file, no audit line."""
    file = tmp_path / "value"
    file.write_text(f"{VALUE}\n")
    code, told = dtf("secret", "set", "HF_TOKEN", "--from", str(file))
    assert (code, told.startswith("HF_TOKEN: kept for the project default, sealed with the key ")) == (0, True), told
    code, told = dtf("secret", "list")
    assert (code, "HF_TOKEN" in told, VALUE in told) == (0, True, False), told
    (one,) = client.secrets()
    assert one.keys() == {"project", "name", "changed", "by", "key"}
    assert (one["by"], client.secrets("other")) == ("farm", [])
    assert VALUE.encode() not in everything_kept(memory, folder)
    lines = [(line["method"], line["path"], line["status"]) for line in audit_of(coordinator)]
    assert ("PUT", "/api/secrets/default/HF_TOKEN", 200) in lines
    assert dtf("secret", "remove", "HF_TOKEN") == (0, "HF_TOKEN: forgotten by the project default\n")
    code, told = dtf("secret", "remove", "HF_TOKEN")
    assert (code, "has no secret 'HF_TOKEN'" in told) == (1, True), told


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("A-B", "long enough", "is no name of a secret"),
        ("DTF_FARM_X", "long enough", "is no name of a secret"),
        ("A", "abc", "must have 4 to 65536 bytes"),
        ("A", "a\0bcd", "and no NUL"),
        ("A", "\ud800secret", "bytes of UTF-8"),
    ],
)
def test_what_is_no_secret(name, value, said):
    with pytest.raises(SettingsError, match=said) as caught:
        check_secret(name, value)
    assert value not in str(caught.value)


def test_of_a_project_that_is_not_there(client):
    with pytest.raises(FarmRefused, match="no project is called 'visoin'"):
        client.set_secret("A", VALUE, project="visoin")


def test_who_may(client, of):
    """A developer of the project. CI sees names, who only looks does not even that; a worker and CI set none."""
    client.set_secret("A", VALUE, project="others")
    with of("developer", projects=["mine"]) as developer:
        assert developer.set_secret("A", VALUE, project="mine")["by"] == "developer"
        for project in ("others", "default"):
            with pytest.raises(FarmRefused, match="limited to the project mine"):
                developer.set_secret("A", VALUE, project=project)
        with pytest.raises(FarmRefused, match="limited to the project mine"):
            developer.remove_secret("A", project="others")
        assert [one["project"] for one in developer.secrets()] == ["mine"]
        with pytest.raises(FarmRefused, match=r"secret\.rotate needs the role admin"):
            developer.rotate_secrets()
    with of("ci") as program:
        assert len(program.secrets()) == 2
        with pytest.raises(FarmRefused, match=r"secret\.set needs the role developer"):
            program.set_secret("A", VALUE)
    with of("viewer") as viewer, pytest.raises(FarmRefused, match=r"secret\.list needs"):
        viewer.secrets()


def test_a_worker_gets_it_for_its_own_attempt_while_that_counts(client, coordinator, worker, of):
    """Of the task's own project, and only what it names. Who gets it stands in the audit file, without the value."""
    client.set_secret("A", VALUE, project="mine")
    client.set_secret("B", "another one", project="mine")
    client.set_secret("C", "of the default project")
    task = client.submit(["true"], secrets=["A"], project="mine")
    order = worker.next()
    own, other, ended = (
        Connection((coordinator.url,), client.create_token("worker", subject=name)["token"]) for name in ("w", "v", "w")
    )
    assert asked_by(own, order) == {"A": VALUE}
    with pytest.raises(FarmRefused, match="makes no such attempt") as caught:
        asked_by(other, order)
    assert caught.value.status == 403
    with (
        of("developer") as developer,
        pytest.raises(FarmRefused, match=r"attempt\.secrets needs the role worker or admin"),
    ):
        asked_by(developer.connection, order)
    worker.end(order)
    assert client.wait(task, DEADLINE).status == "completed"
    with pytest.raises(FarmRefused, match="does not count: it gets no secrets"):
        asked_by(ended, order)
    for connection in (own, other, ended):
        connection.close()
    given = [line for line in audit_of(coordinator) if line.get("event") == "secrets"]
    assert [(one["project"], one["names"], one["sub"]) for one in given if one["task"] == task] == [
        ("mine", ["A"], "w")
    ]
    assert VALUE not in coordinator.audit.read_text()
    shown = json.dumps([client.task(task).raw, client.workers()], default=str)
    assert VALUE not in shown


def test_a_task_waits_for_a_secret_that_nobody_has(client, worker):
    """Until somebody sets it for its project; another project's does not help."""
    task = client.submit(["true"], secrets=["A"], project="mine")
    client.set_secret("A", VALUE)
    why = poll_until(lambda: client.task(task).reason, DEADLINE, "the leader to say why")
    assert "no worker has the secret A" in why
    client.set_secret("A", VALUE, project="mine")
    order = worker.next()
    assert (order.task, asked_by(worker.connection, order)) == (task, {"A": VALUE})
    worker.end(order)
    client.remove_secret("A", project="mine")
    again = client.submit(["true"], secrets=["A"], project="mine")
    assert "no worker has the secret A" in poll_until(
        lambda: client.task(again).reason, DEADLINE, "the leader to say why"
    )
    client.cancel(again)


def test_rotation(dtf, client, coordinator, memory, worker, keys):
    """A new key seals from now on and older ones open; after `rotate` the old key is needed no more."""
    client.set_secret("A", VALUE)
    before = client.secrets()[0]["key"]
    code, told = dtf_new_key(keys)
    assert (code, "older ones that still open" in told) == (0, True), told
    client.submit(["true"], secrets=["A"])
    order = worker.next()
    assert asked_by(worker.connection, order) == {"A": VALUE}
    code, told = dtf("secret", "rotate")
    assert (code, told.startswith("1 secrets were sealed anew")) == (0, True), told
    after = client.secrets()[0]["key"]
    assert before != after
    newest = keys.read_text().splitlines()[0]
    keys.write_text(newest + "\n")
    assert client.rotate_secrets() == {"key": after, "resealed": 0, "failed": []}
    assert asked_by(worker.connection, order) == {"A": VALUE}


def dtf_new_key(path):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["farm", "secret", "new-key", str(path)])
    return code, out.getvalue()


def test_a_wrong_key_says_so(dtf, client, memory, worker, keys, folder):
    """Who lost the key hears which it was, and the worker as well; a farm without keys says how to make one."""
    client.set_secret("A", VALUE)
    lost = client.secrets()[0]["key"]
    keys.unlink()
    put_new_key(keys)
    code, told = dtf("secret", "rotate")
    assert (code, f"sealed with the key {lost}" in told) == (1, True), told
    client.submit(["true"], secrets=["A"])
    order = worker.next()
    with pytest.raises(FarmRefused, match=f"sealed with the key {lost}, and {keys} has"):
        asked_by(worker.connection, order)
    worker.end(order)
    without = CoordinatorInThread(memory, folder, name="c1")
    with without.client() as other, pytest.raises(FarmRefused, match="dtf farm secret new-key FILE"):
        other.set_secret("B", VALUE)
    without.stop()


def test_a_coordinator_that_hears_of_the_attempt_later(client, memory, worker, keys, folder):
    """A worker may ask another one than told it of the attempt; that one waits for it to come by."""
    client.set_secret("A", VALUE)
    second = CoordinatorInThread(memory, folder, name="c1", settings={"secrets.key_file": str(keys)})
    client.submit(["true"], secrets=["A"])
    order = worker.next()
    token = client.create_token("worker", subject="w")["token"]
    with second.client() as other:
        poll_until(other.tokens, DEADLINE, "the other coordinator to hear of the token's key")
    connection = Connection((second.url,), token)
    assert asked_by(connection, order) == {"A": VALUE}
    connection.close()
    worker.end(order)
    second.stop()


def test_the_farms_token_alone_gives_no_secret_of_a_task_that_waits(client, coordinator):
    client.set_secret("A", VALUE)
    task = client.submit(["true"], secrets=["A"])
    owner = Connection((coordinator.url,), read_token(coordinator.token_file))
    with pytest.raises(FarmRefused, match="does not count"):
        owner.ask("POST", f"/api/tasks/{task}/secrets", revision=1)
    owner.close()
    client.cancel(task)
