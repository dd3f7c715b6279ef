"""What both modes' agents have from their common loop."""

from __future__ import annotations

import threading

import pytest

from dtf_lightning.elastic.agent.exit import ExitReason
from dtf_lightning.elastic.agent.loop import AgentLoop
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunInfo, RunKeys, RunPhase
from dtf_lightning.elastic.run.transactions import begin, end, unchanged
from dtf_lightning.elastic.settings import AgentSettings, ElasticSettings
from dtf_lightning.errors import DtfError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.session import StoreSnapshot, Write
from dtf_lightning.etcd.store import RangeResult
from dtf_lightning.events.log import EventLog, read_events
from support.elastic.agents import PATIENCE

KEYS = RunKeys("r")
SETTINGS = AgentSettings(elastic=ElasticSettings(min_nodes=1, max_nodes=1, stability_window=0.05), grace_period=600.0)


class Agent(AgentLoop):
    """Publishes one record, and leaves when its grace period is over."""

    breaks = False
    answered = None
    final: tuple[Write, ...] = ()

    def _start_parts(self):
        self.went = threading.Event()

    def _close_parts(self):
        pass

    def _handle(self, event):
        raise AssertionError(event)

    def _react(self):
        if self.breaks:
            raise RuntimeError("a bug")
        self._publish(NodeRecord(node=self.node_id, host="h", num_workers=1))
        if self._grace.ends.is_due(self._clock.monotonic()) and self._go(ExitReason.OUT_OF_TIME, "late"):
            self.went.set()

    def _deadlines(self):
        return ()

    def _asked_to_leave(self, reason):
        self._begin_to_leave(reason)

    def _node_changed(self, record):
        pass

    def _peer_gone(self, node, cause):
        pass

    def _peer_died(self, node, cause):
        pass

    def _written(self, write, outcome):
        pass

    def _last_writes(self):
        return self.final

    def _broke(self, text):
        self.went.set()

    def _turn_away(self, event):
        pass


@pytest.fixture
def make(backend, tmp_path):
    """Makes agents that are closed with the test."""
    made: list[tuple[Agent, MemoryStore]] = []

    def make(settings: AgentSettings = SETTINGS) -> Agent:
        store = MemoryStore(backend)
        made.append(
            (
                Agent(
                    store, settings, "r", node="a", host="h", event_log=EventLog(ELASTIC_EVENTS, tmp_path / "a.jsonl")
                ),
                store,
            )
        )
        return made[-1][0]

    yield make
    for agent, store in made:
        agent.close()
        store.close()


def wait_for_key(backend, key: str) -> None:
    with backend.changed:
        assert backend.changed.wait_for(lambda: backend.find(key), PATIENCE), f"{key} did not appear"


def test_a_notice_shortens_a_grace_period_that_runs(make):
    """An operator drains the node, then the machine's end is announced for sooner: the sooner end counts."""
    agent = make()
    agent.start()
    agent.leave("drained by an operator")
    agent.leave("spot notice", within=0.05)
    assert agent.went.wait(PATIENCE)  # far less than the grace period
    assert agent.exit_reason is ExitReason.OUT_OF_TIME


def test_leaving_is_logged_with_its_reason_and_time(make, caplog):
    """Once, however often it is asked for."""
    agent = make()
    with caplog.at_level("INFO", "dtf_lightning"):
        agent.start()
        agent.leave("drained by an operator", within=0.05)
        agent.leave("SIGTERM", within=0.05)
        assert agent.went.wait(PATIENCE)
    lines = [record.getMessage() for record in caplog.records if "leaves" in record.getMessage()]
    assert lines == ["a: leaves (drained by an operator), within 0.05 s"]


def test_a_node_whose_key_went_unseen_registers_again(make, backend):
    """Its record was deleted while its watch had lost its place: the fresh reading of the keys shows nothing of it."""
    agent = make()
    agent.start()
    wait_for_key(backend, KEYS.node("a"))
    with MemoryStore(backend) as other:
        agent._view.reset = lambda result: []  # type: ignore[method-assign]  # nothing is known to have changed
        agent._view.apply = lambda events: []  # type: ignore[method-assign]
        agent._view.nodes.clear()
        other.delete(KEYS.node("a"))
        agent._inbox.put(StoreSnapshot(RangeResult(backend.revision, ())))
        wait_for_key(backend, KEYS.node("a"))


def test_a_loop_that_broke_says_so_and_still_closes(make):
    """A bug of ours: the main thread gets an error to raise, and `close` takes the keys back as ever."""
    agent = make()
    agent.breaks = True
    agent.start()
    assert agent.went.wait(PATIENCE)
    assert agent.exit_reason is ExitReason.BROKEN
    with pytest.raises(DtfError, match="the agent's loop broke: RuntimeError"):
        raise agent._exit.exception()
    agent.close()
    assert not agent._thread.is_alive()


@pytest.mark.parametrize(("fence", "told"), [("run", 1), ("generation", 0)])
def test_the_end_of_a_run_is_an_event_of_whoever_wrote_it(make, backend, tmp_path, fence, told):
    """The last node ends the run as it goes: one event. Its write is refused, because another one was first: none."""
    agent = make()
    agent.start()
    wait_for_key(backend, KEYS.node("a"))
    run = RunInfo(instance="i", started_at=7.0, mode="restart", script="train.py")
    with MemoryStore(backend) as other:
        other.txn((), begin(KEYS, run))
        with agent._changed:
            assert agent._changed.wait_for(lambda: agent._view.run is not None, PATIENCE)
        fences = () if told else (unchanged(agent._view, KEYS.generation),)
        agent.final = (end(agent._view, RunPhase.FINISHED, "all went home", *fences),)
        if not told:
            other.put(KEYS.generation, b"{}")
        agent.close()
    ended = [event for event in read_events(ELASTIC_EVENTS, tmp_path / "a.jsonl") if event.kind == "run_ended"]
    assert [(event.phase, event.reason) for event in ended] == [("finished", "all went home")] * told


def test_a_run_that_ends_keeps_what_it_began_with(make, backend):
    """Start, mode, script and sizes are those of the run, whatever ends it."""
    agent = make()
    run = RunInfo(instance="i", started_at=7.0, min_nodes=2, max_nodes=3, mode="restart", script="train.py")
    with MemoryStore(backend) as other:
        other.txn((), begin(KEYS, run))
        agent._view.reset(other.range(KEYS.prefix))
    write = end(agent._view, RunPhase.ABORTED, "too many failures")
    assert RunInfo.decode(write.puts[0].value) == run.ended(RunPhase.ABORTED, "too many failures")
    assert (run.ended(RunPhase.ABORTED, "x").started_at, run.ended(RunPhase.ABORTED, "x").script) == (7.0, "train.py")
