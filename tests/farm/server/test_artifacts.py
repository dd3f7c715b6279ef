"""Artifacts from a worker's disk to whoever asks for them, over real HTTP."""

from __future__ import annotations

import json
import queue
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.messages import Result
from dtf_lightning.farm.record.codec import MAX_ENVELOPE, encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import CoordinatorRecord, Envelope, TaskOutcome
from dtf_lightning.farm.results.artifacts import ArtifactStore, ArtifactsUnavailable
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.server.envelopes import fitting, is_small
from dtf_lightning.farm.worker.results import INDEX
from dtf_lightning.farm.worker.service import artifact_sender
from dtf_lightning.farm.worker.service.artifact_sender import ArtifactSender
from support.farm.server import DEADLINE, CoordinatorInThread


@pytest.fixture
def sent(worker):
    """Results as they can be said, from a sender of this worker."""
    said: queue.Queue[Result] = queue.Queue()
    senders = []

    def start(order, files, connection=worker.connection, patience=DEADLINE, rank=0):
        sender = ArtifactSender(connection, said.put, patience=patience)
        senders.append(sender)
        artifacts = {name: str(path) for name, path in files.items()}
        outcome = AttemptOutcome(kind=OutcomeKind.COMPLETED, exit_code=0, started=1.0, ended=2.0, artifacts=artifacts)
        sender.send(Result(task=order.task, number=order.number, revision=order.revision, outcome=outcome), rank=rank)
        return said.get(timeout=DEADLINE).outcome

    yield start
    for sender in senders:
        sender.close()


def written(folder, **files):
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in files}


def end(worker, order, outcome):
    worker.end(order, artifacts=outcome.artifacts, missing=outcome.missing, reason=outcome.reason)


class TestOnTheirWay:
    def test_to_whoever_asks(self, client, worker, sent, tmp_path):
        """The envelope links to the store, the list has sizes and digests, and a copy has what the worker had."""
        task = client.submit(["x"])
        order = worker.next()
        outcome = sent(
            order, written(tmp_path, report="<testsuite/>") | {"deep/raw.bin": written(tmp_path, raw="raw")["raw"]}
        )
        end(worker, order, outcome)
        told = client.wait(task, DEADLINE).raw["results"]
        assert set(told["artifacts"]) == {"report", "deep/raw.bin"}
        assert told["artifacts"]["report"].startswith("file://")
        listed = client.artifacts(task)
        assert [(one["name"], one["size"]) for one in listed["artifacts"]] == [("deep/raw.bin", 3), ("report", 12)]
        assert (listed["revision"], listed["missing"]) == (order.revision, [])
        path = client.fetch_artifact(task, "deep/raw.bin", tmp_path / "copies")
        assert (path, path.read_text()) == (tmp_path / "copies" / "deep" / "raw.bin", "raw")

    def test_more_than_an_envelope_names(self, client, worker, sent, tmp_path):
        """All that the index lists is stored, beside the index itself."""
        client.submit(["x"])
        order = worker.next()
        files = written(tmp_path, **{f"f{number}": str(number) for number in range(30)})
        index = tmp_path / INDEX
        index.write_text(json.dumps({"artifacts": {name: str(path) for name, path in files.items()}}))
        outcome = sent(order, {INDEX: index, "f0": files["f0"]})
        assert set(outcome.artifacts) == {INDEX, "f0"}
        assert len(client.artifacts(order.task, revision=order.revision)["artifacts"]) == 31

    def test_what_is_stored_is_not_sent_again(self, client, worker, sent, tmp_path, monkeypatch):
        client.submit(["x"])
        order = worker.next()
        files = written(tmp_path, a="a")
        first = sent(order, files)
        monkeypatch.setattr(worker.connection, "send_file", lambda *_, **__: pytest.fail("it is sent again"))
        assert sent(order, files) == first

    def test_what_cannot_be_stored_is_named(self, client, worker, sent, tmp_path):
        """A file that has gone, and a name that is too long; the others are stored, and the result says which are missing."""
        task = client.submit(["x"])
        order = worker.next()
        files = written(tmp_path, good="g") | {"gone": tmp_path / "gone", "n" * 200: tmp_path / "good"}
        outcome = sent(order, files)
        assert set(outcome.artifacts) == {"good"}
        assert outcome.missing == ("gone", "n" * 200)
        assert "the artifact 'gone' and 1 more artifacts are missing: it cannot be read" in outcome.reason
        end(worker, order, outcome)
        assert client.wait(task, DEADLINE).raw["results"]["missing"] == ["gone", "n" * 200]
        assert client.artifacts(task)["missing"] == ["gone", "n" * 200]

    def test_a_name_that_leads_out_of_the_folder(self, client, worker, sent, tmp_path):
        client.submit(["x"])
        order = worker.next()
        sent(order, {"../out": written(tmp_path, a="a")["a"]})
        with pytest.raises(Exception, match="leads out of a folder"):
            client.fetch_artifact(order.task, "../out", tmp_path / "copies", revision=order.revision)

    def test_a_gangs(self, client, worker, sent, tmp_path):
        """Files of one name from several workers stay apart."""
        client.submit(["x"])
        order = worker.next()
        sent(order, written(tmp_path, a="first"))
        assert set(sent(order, written(tmp_path, a="second"), rank=1).artifacts) == {"rank1/a"}
        listed = client.artifacts(order.task, revision=order.revision)["artifacts"]
        assert [(one["name"], one["size"]) for one in listed] == [("a", 5), ("rank1/a", 6)]


class TestAStoreThatFails:
    def test_it_is_tried_again(self, client, worker, sent, tmp_path, coordinator, monkeypatch):
        """The disk is full twice, then there is room: the result is said once its file is stored."""
        client.submit(["x"])
        order = worker.next()
        store, fails = ArtifactStore.put, [2]

        def full(self, *arguments):
            if fails[0]:
                fails[0] -= 1
                raise ArtifactsUnavailable("the disk is full")
            return store(self, *arguments)

        monkeypatch.setattr(ArtifactStore, "put", full)
        monkeypatch.setattr(artifact_sender, "PAUSE", 0.01)
        outcome = sent(order, written(tmp_path, a="a"))
        assert (set(outcome.artifacts), outcome.missing) == ({"a"}, ())

    def test_it_holds_up_no_result(self, client, worker, sent, tmp_path, monkeypatch):
        client.submit(["x"])
        order = worker.next()

        def full(*_):
            raise ArtifactsUnavailable("the disk is full")

        monkeypatch.setattr(ArtifactStore, "put", full)
        outcome = sent(order, written(tmp_path, a="a"), patience=0.0)
        assert outcome.missing == ("a",)
        assert "the artifact 'a' is missing: the disk is full" in outcome.reason


class TestASecondHost:
    def test_is_refused(self, tmp_path):
        """A coordinator elsewhere could not find what this one stores on its disk."""
        store = MemoryStore()
        record = CoordinatorRecord(address="http://127.0.0.1:1", version="1", host="another")
        store.put(FarmKeys("f").key(Kind.COORDINATOR, "c1"), encode(record))
        with pytest.raises(SettingsError, match="the coordinator c1 of this farm runs on another"):
            CoordinatorInThread(store, tmp_path)
        coordinator = CoordinatorInThread(store, tmp_path, settings={"farm.shared": True})
        coordinator.stop()
        store.close()


TEXT = st.text(max_size=400)
NAMES = st.dictionaries(TEXT, TEXT, max_size=20)


@given(
    reason=TEXT,
    tail=st.text(max_size=2048),
    artifacts=NAMES,
    missing=st.lists(TEXT, max_size=20).map(tuple),
    metrics=st.dictionaries(TEXT, st.floats(), max_size=20),
    counts=st.dictionaries(TEXT, st.integers(0, 10), max_size=20),
)
def test_every_envelope_fits(reason, tail, artifacts, missing, metrics, counts):
    """Whatever a task leaves, its result can be recorded, with outcome and exit code; what was small enough is unchanged."""
    envelope = Envelope(
        outcome=TaskOutcome.FAILED, attempt=1, revision=5, exit_code=3, reason=reason, tail=tail, artifacts=artifacts,
        missing=missing, metrics=metrics, counts=counts,
    )  # fmt: skip
    fits = fitting(envelope)
    assert len(encode(fits)) <= MAX_ENVELOPE
    assert (fits.outcome, fits.exit_code, fits.revision) == (TaskOutcome.FAILED, 3, 5)
    if fits != envelope:
        with pytest.raises(Exception, match="8192 are allowed"):
            encode(replace(envelope))


@given(text=TEXT, number=st.integers(0, 10**25), names=st.lists(TEXT, max_size=6).map(tuple), loss=st.floats())
def test_what_is_held_to_be_small_is(text, number, names, loss):
    """Its size need not be measured then."""
    envelope = Envelope(
        outcome=TaskOutcome.FAILED, attempt=1, revision=2**62, exit_code=3, reason=text, tail=text[::-1], workers=names,
        command=names, metrics={text: loss}, counts={text: number}, started=loss, ended=1e300, submitted=0.1,
    )  # fmt: skip
    assert not is_small(envelope) or len(encode(envelope)) <= MAX_ENVELOPE
