"""The restart agent without torchelastic: what it says to people, whom it refuses, what becomes of its questions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dtf_lightning.elastic.agent.exit import ExitReason
from dtf_lightning.elastic.agent.restart.entry import RunEntry
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.status import Role
from dtf_lightning.elastic.run.keys import RunInfo, RunKeys, RunPhase, RunView, encode
from dtf_lightning.elastic.run.status import read_status
from dtf_lightning.elastic.run.transactions import begin
from dtf_lightning.elastic.settings import COMEBACK_MARGIN, AgentSettings, ElasticSettings
from dtf_lightning.errors import DtfError, RunAborted, RunRefused
from dtf_lightning.etcd.memory.store import MemoryStore
from support.elastic.restart_nodes import PATIENCE, RestartNode
from support.store_worlds import ManualClock

KEYS = RunKeys("r")


@pytest.fixture
def store(backend):
    with MemoryStore(backend) as store:
        yield store


@pytest.fixture
def make(backend, tmp_path):
    made: list[RestartNode] = []

    def make(name: str, **options: object) -> RestartNode:
        made.append(RestartNode(backend, "r", name, tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for node in made:
        node.close()


def wait_for(store: MemoryStore, what: Callable[[RunView], bool]) -> RunView:
    """The first view of the run's keys in which this holds."""
    view = RunView(KEYS)
    snapshot = store.range(KEYS.prefix)
    view.reset(snapshot)
    watch = store.watch(KEYS.prefix, start_revision=snapshot.revision + 1)
    try:
        while not what(view):
            batch = watch.get(PATIENCE)
            assert batch, f"did not come; nodes: {view.nodes}, status: {view.status}"
            view.apply(batch)
    finally:
        watch.cancel()
    return view


def test_workers_that_say_that_the_run_must_end(make, store, tmp_path):
    """They have left a note (workers that stopped apart): the run ends for all nodes, with what it says."""
    nodes = [make(name, min_nodes=2, max_nodes=2) for name in "ab"]
    asked = [node.ask() for node in nodes]
    for node, question in zip(nodes, asked, strict=True):
        question.result(PATIENCE)
        node.agent.workers_starting(1)
    (tmp_path / "a.abort").write_text("they stopped apart")
    nodes[0].fail(1, 0, "exit code 1")
    view = wait_for(store, lambda view: view.run is not None and view.run.phase is RunPhase.ABORTED)
    assert view.run.reason == "they stopped apart"
    for node in nodes:
        with pytest.raises(RunAborted, match="run 'r': they stopped apart"):
            node.ask().result(PATIENCE)


def test_the_last_of_them_says_it_when_it_goes(make, store, tmp_path):
    """torchelastic ends the agent at once, because its workers may not fail."""
    node = make("a")
    node.enter()
    (tmp_path / "a.abort").write_text("they stopped apart")
    node.fail(1, 0, "exit code 1")
    node.close()
    view = wait_for(store, lambda view: view.run is not None and view.run.phase is not RunPhase.RUNNING)
    assert (view.run.phase, view.run.reason) == (RunPhase.ABORTED, "they stopped apart")


def test_the_run_says_how_it_began_and_what_it_waits_for(make, store, caplog):
    """One of two nodes is there: the log says that a run begins and why, `dtf status` that it is paused and for what."""
    with caplog.at_level("INFO", "dtf_lightning"):
        a = make("a", min_nodes=2)
        asked = a.ask()
        wait_for(store, lambda view: view.status is not None and view.status.paused)
        status = read_status(store, "r")
    assert (status.paused, status.reason) == (True, "1 of at least 2 nodes are here")
    assert [node.role for node in status.nodes] == [Role.JOINER]
    assert status.started_at > 0
    assert "a: run 'r' begins (nothing has been trained under this run id)" in caplog.messages
    b = make("b", min_nodes=2)
    assert len(b.enter().members) == len(asked.result(PATIENCE).members) == 2
    status = read_status(store, "r")
    assert (status.paused, status.reason) == (False, "round 1: 2 nodes started")


def test_recent_events_are_in_etcd(make, store):
    """A round was formed and its workers were started: `dtf status` shows both."""
    a = make("a")
    a.enter()
    wait_for(store, lambda view: len(view.happenings()) == 2)
    texts = [text for _, text in read_status(store, "r").events]
    assert texts == ["generation 1 with 1 workers: 1 node started", "a started 1 workers (start 1)"]


def test_a_lost_worker_is_an_event(make, store):
    """One of two workers ends by itself, its sibling with it: one event and one reason, those of the first."""
    a = make("a")
    a.enter()
    a.fail(11, 1, "exit code 3")
    a.fail(10, 0, "SIGTERM")
    view = wait_for(store, lambda view: view.nodes["a"].suspect == 1)
    assert view.nodes["a"].detail == "worker process 11: exit code 3"
    asked = a.ask()
    assert asked.result(PATIENCE).reason == "a: worker process 11: exit code 3"
    a.close()
    assert [(event.local_rank, event.reason) for event in a.events("worker_lost")] == [
        (1, "worker process 11: exit code 3")
    ]


def test_the_end_of_the_run_is_an_event(make, store):
    """The only node finishes and goes: the run is finished, and its log says so."""
    a = make("a")
    started_at = a.enter() and read_status(store, "r").started_at
    assert a.main.submit(a.agent.finished, PATIENCE).result(PATIENCE)
    a.close()
    assert [(event.phase, event.reason) for event in a.events("run_ended")] == [
        ("finished", "all nodes of round 1 finished")
    ]
    status = read_status(store, "r")
    assert (status.phase, status.started_at) == (RunPhase.FINISHED, started_at)


def test_too_many_failures_are_an_event(make, store):
    """The run is aborted by the node that decides it."""
    a = make("a", max_consecutive_failures=0)
    a.enter()
    a.fail(11, 0, "exit code 3")
    with pytest.raises(DtfError, match="failures in a row"):
        a.ask().result(PATIENCE)
    a.close()
    assert [event.phase for event in a.events("run_ended")] == ["aborted"]


def test_a_drain_is_logged(make, store, caplog):
    """An operator asks the node to leave: its own log says why it goes."""
    a = make("a")
    a.enter()
    with caplog.at_level("INFO", "dtf_lightning"):
        store.put(KEYS.drain("a"), b"{}")
        wait_for(store, lambda view: view.nodes["a"].leaving)
    assert a.agent.exit_reason is ExitReason.LEFT
    assert "a: leaves (drained by an operator), within 30 s" in caplog.messages


def test_a_broken_loop_frees_the_main_thread(make):
    """A bug of ours while torchelastic waits for a round: its question is answered with it, and so is the next."""
    a = make("a", min_nodes=2)

    def broken(instance):
        raise RuntimeError("a bug")

    a.agent._planner.advance = broken
    for _ in range(2):
        with pytest.raises(DtfError, match="the agent's loop broke: RuntimeError"):
            a.ask().result(PATIENCE)


def test_the_exit_barrier_ends_when_the_next_run_has_begun(make, store):
    """A node has finished and waits for another; meanwhile the id's keys are those of a new run: nobody is left to wait for."""
    a, b = (make(name, initial_window=PATIENCE, max_wait=PATIENCE, max_nodes=2) for name in "ab")
    asked = b.ask()
    a.enter()
    asked.result(PATIENCE)
    waiting = a.main.submit(a.agent.finished, PATIENCE)
    wait_for(store, lambda view: view.nodes["a"].finished == 1)
    assert not waiting.done()
    store.txn((), begin(KEYS, RunInfo(instance="next", mode="restart", script="train.py", max_nodes=2)))
    assert waiting.result(PATIENCE / 2)


# --- whose run it is ---------------------------------------------------------------------------------------------------


def test_an_id_whose_run_never_trained_is_free(make, store):
    """A node of another script was interrupted while it waited for others: the id's next nodes have a run of their own."""
    first = make("first", script="other.py", min_nodes=2)
    first.ask()
    wait_for(store, lambda view: view.status is not None)
    instance = read_run(store).instance
    first.agent.leave("Ctrl-C")
    first.close()
    a, b = make("a", min_nodes=2), make("b", min_nodes=2)
    asked = a.ask()
    assert len(b.enter().members) == len(asked.result(PATIENCE).members) == 2
    run = read_run(store)
    assert (run.script, run.instance != instance) == ("train.py", True)


def test_another_script_is_refused_while_somebody_takes_part(make, store):
    """Also while that one still waits for its first round."""
    a = make("a", min_nodes=2)
    a.ask()
    wait_for(store, lambda view: view.run is not None)
    with pytest.raises(RunRefused, match=r"\(nodes: a\): the run trains 'train.py', this node 'other.py'\. Start it"):
        make("b", script="other.py", min_nodes=2).ask().result(PATIENCE)
    a.agent.leave("the test is over")


def read_run(store: MemoryStore) -> RunInfo:
    return RunInfo.decode(store.get(KEYS.run).value)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def entry(store, clock):
    """A newcomer's way into a run that has trained and of which nobody is listed."""
    run = RunInfo(instance="old", mode="restart", script="old.py", min_nodes=1, max_nodes=4)
    generation = Generation(number=3, instance="old", members=(Member(node="x", incarnation=1, num_workers=1),))
    store.txn((), begin(KEYS, run))
    store.put(KEYS.generation, encode(generation.to_json()))
    view = RunView(KEYS)
    view.reset(store.range(KEYS.prefix))
    settings = AgentSettings(elastic=ElasticSettings(min_nodes=1, max_nodes=4))
    return RunEntry(view, "a", settings, "old.py", clock)


def test_a_crashed_run_goes_on_with_its_own_script(entry):
    """Its nodes are started again after all of them had gone: the same run, and its failures count on."""
    assert (entry.refusal(), entry.may_take_part()) == ("", True)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"script": "new.py"}, "the run trains 'old.py', this node 'new.py'"),
        ({"min_nodes": 2}, "the run has --nnodes=1:4, this node 2:4"),
    ],
)
def test_a_crashed_run_is_over_for_others(entry, clock, changed, why):
    """Once its nodes have had the time to come back: then the id begins anew."""
    entry.script = changed.get("script", entry.script)
    entry.settings = AgentSettings(elastic=ElasticSettings(min_nodes=changed.get("min_nodes", 1), max_nodes=4))
    assert (entry.refusal(), entry.may_take_part()) == ("", False)
    wait = entry.settings.lease_ttl + COMEBACK_MARGIN
    assert entry.why_begin() == ("", clock.monotonic() + wait)
    clock.now += wait
    reason, look_again = entry.why_begin()
    assert (reason, look_again) == (f"nobody of the earlier run old is left; {why}", None)
    write, run = entry.begin(reason)
    assert (run.script, run.reason, run.mode) == (entry.script, reason, "restart")
    assert [compare.key for compare in write.compares] == [KEYS.run]
