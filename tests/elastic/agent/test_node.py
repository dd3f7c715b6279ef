"""A node's workers as one: the record they make, and what they are told. No threads, no sockets."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations

import pytest

from dtf_lightning.elastic.agent.live.incarnation import LocalWorker
from dtf_lightning.elastic.agent.live.worker_group import AgentAddress, WorkerGroup
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.directives import Directive, DirectiveKind
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.run.keys import RunInfo, RunPhase


@pytest.fixture
def node():
    """Two workers, set up and admitted."""
    node = WorkerGroup(AgentAddress(node="a", host="h", store_port=1, mesh_port=2))
    node.begin(2)
    for local_rank in range(2):
        node.incarnation.attach(
            LocalWorker(connection=local_rank, local_rank=local_rank, pid=local_rank + 100, heard_at=0.0)
        )
    for worker in node.incarnation.workers.values():
        node.said(worker, messages.Ready(after=0, fingerprint={"x": "1"}), 0.0)
    node.incarnation.instance = "i"
    return node


def generation(number: int, *others: str) -> Generation:
    members = (
        *(Member(node=name, incarnation=1, num_workers=1) for name in others),
        Member(node="a", incarnation=1, num_workers=2),
    )
    return Generation(number=number, members=members)


def told(
    node: WorkerGroup, generation: Generation | None, directive: Directive | None = None
) -> list[messages.Message]:
    return [message for _, message in node.orders(generation, directive)]


def say(node: WorkerGroup, *said: messages.Message) -> None:
    for worker, message in zip(list(node.incarnation.workers.values()), said, strict=True):
        node.said(worker, message, 1.0)


def test_ranks_follow_the_order_of_members(node):
    """Behind a member with one worker, ours have ranks 1 and 2."""
    assigned = told(node, generation(1, "b"))
    assert [(m.rank, m.world_size) for m in assigned] == [(1, 3), (2, 3)]
    assert told(node, generation(1, "b")) == []
    assert (node.record().generation, node.record().ready_after) == (1, None)


def test_boundary_is_the_furthest_worker(node):
    """The answer is given when all workers have answered, and is the largest."""
    told(node, generation(1))
    prepare = Directive(kind=DirectiveKind.PREPARE, target=2)
    assert told(node, generation(1), prepare) == [messages.Prepare(target=2)] * 2
    first, second = node.incarnation.workers.values()
    node.said(first, messages.At(target=2, boundary=4), 1.0)
    assert node.record().boundary is None
    node.said(second, messages.At(target=2, boundary=5), 1.0)
    assert node.record().boundary == (2, 5)


def test_the_first_stop_and_the_furthest_batch(node):
    """Of two workers one leaves the loop behind batch 4, the other is at 5; a withdrawal, or unwinding, forgets the stop."""
    told(node, generation(1))
    first, second = node.incarnation.workers.values()
    stop = messages.LoopEnds(generation=1, batches=4, step=40, reason="trainer.should_stop was set")
    node.said(first, messages.Heartbeat(step=40, generation=1, batches=5), 1.0)
    node.said(second, stop, 1.0)
    record = node.record(tells_passed=True)
    assert (record.stopped, record.passed) == ((1, 4), (1, 5))
    assert record.stopped_why == "worker 1 after step 40: trainer.should_stop was set"
    assert NodeRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert node.record().passed is None, "it changes with every step, and would be written as often"
    node.said(second, replace(stop, withdrawn=True, batches=5), 1.0)
    assert node.record().stopped is None
    node.said(second, stop, 1.0)
    node.said(second, messages.Ready(after=1), 1.0)
    assert (node.record().stopped, node.record().stopped_why) == (None, "")


def test_generation_and_its_failure_seen_at_once(node):
    """The agent was cut off and sees generation 1 and FAIL together: nobody is sent into it, the node is ready."""
    fail = Directive(kind=DirectiveKind.FAIL, target=2, failed=("b#1",))
    assert told(node, generation(1, "b"), fail) == []
    assert node.record().ready_after == 1
    assert [m.rank for m in told(node, generation(2))] == [0, 1]


def test_ready_workers_are_not_told_of_a_failure(node):
    """One worker has unwound already: only the other is told."""
    told(node, generation(1, "b"))
    first, second = node.incarnation.workers.values()
    node.said(first, messages.Ready(after=1), 1.0)
    orders = list(node.orders(generation(1, "b"), Directive(kind=DirectiveKind.FAIL, target=2)))
    assert [(worker.local_rank, type(message)) for worker, message in orders] == [(1, messages.Fail)]
    node.said(second, messages.Ready(after=1), 1.0)
    assert node.record().ready_after == 1


def test_put_out_by_the_leader(node):
    """The node finds its own id among the failed: its incarnation ends."""
    told(node, generation(1, "b"))
    assert told(node, generation(1, "b"), Directive(kind=DirectiveKind.FAIL, target=2, failed=("a#1",))) == []
    assert node.record().state is WorkerState.FAILED


def test_left_behind(node):
    """The node was cut off and finds a generation without it: its incarnation ends, rather than train on alone."""
    told(node, generation(1, "b"))
    others = Generation(number=2, members=(Member(node="b", incarnation=1, num_workers=1),))
    assert told(node, others) == []
    assert "generation 2 was formed without this node" in node.record().detail


@pytest.mark.parametrize("told_to_stop", [True, False])
def test_the_others_go_on_before_a_leaver_has_said_that_it_left(node, told_to_stop):
    """The next generation is here before `Left`: nobody is ended for it; a worker that knows of no stop is told to unwind.

    The agent may have missed the stop, because it reads the last state of the keys only.
    """
    told(node, generation(1, "b"))
    node.leave("SIGTERM")
    if told_to_stop:
        stop = Directive(kind=DirectiveKind.STOP, target=2, boundary=9, leaving=("a#1",))
        assert [message.leave for message in told(node, generation(1, "b"), stop)] == [True, True]
    others = Generation(number=2, members=(Member(node="b", incarnation=1, num_workers=1),), retired=("a#1",))
    messages_now = told(node, others)
    assert [type(message) for message in messages_now] == ([] if told_to_stop else [messages.Fail] * 2)
    assert told(node, others) == []
    assert (node.incarnation.failed, node.record().state) == ("", WorkerState.DRAINING)
    first, second = list(node.incarnation.workers.values())
    if told_to_stop:
        node.said(first, messages.Left(), 1.0)
        assert not node.lost(first, "ended")
        assert not node.lost(second, "ended before its last word arrived")
        assert node.record().state is WorkerState.LEFT
    else:
        say(node, messages.Ready(after=1), messages.Ready(after=1))
        assert node.incarnation.waits
        assert [type(message) for _, message in node.leave_without_stop("leaves")] == [messages.Finish] * 2


def test_retired_before_it_was_handed_a_generation(node):
    """The node was put out of generation 1 while it was cut off, and only ever sees generation 2: it does not wait on."""
    others = Generation(number=2, members=(Member(node="b", incarnation=1, num_workers=1),), retired=("a#1",))
    assert told(node, others) == []
    assert node.record().state is WorkerState.FAILED


def test_leaver_is_left_when_all_workers_have_said_so(node):
    """Both workers leave at the boundary; their ends are no failures then."""
    told(node, generation(1))
    node.leave("SIGTERM")
    assert node.record().state is WorkerState.DRAINING
    first, second = list(node.incarnation.workers.values())
    node.said(first, messages.Left(), 1.0)
    assert not node.lost(first, "ended")
    assert node.record().state is WorkerState.DRAINING
    node.said(second, messages.Left(), 1.0)
    assert node.record().state is WorkerState.LEFT
    assert not node.lost(second, "ended")
    assert node.record().state is WorkerState.LEFT


def test_end_of_run(node):
    """Everybody is told once that the run is finished, newcomers of the node too."""
    finished = RunInfo(instance="i", phase=RunPhase.FINISHED, reason="done")
    assert [type(m) for _, m in node.end_of_run(finished)] == [messages.Finish] * 2
    assert list(node.end_of_run(finished)) == []
    assert node.record().state is WorkerState.LEFT


def test_suspect_is_forgotten_when_unwound(node):
    """A report of a broken collective is in the record until the workers are ready again."""
    told(node, generation(1))
    say(node, messages.Suspect(generation=1, error="reset\nmore"), messages.Active(generation=1, step=0))
    assert (node.record().suspect, node.record().detail) == (1, "reset")
    say(node, messages.Ready(after=1), messages.Ready(after=1))
    assert node.record().suspect == 0


@pytest.mark.parametrize("order", ["death first", "signal first"])
def test_sibling_of_a_dead_worker_does_not_make_the_node_leave(node, order):
    """torchelastic ends the siblings of a dead worker with SIGTERM, which they report: the node is to come back."""
    told(node, generation(1))
    first, second = node.incarnation.workers.values()
    happens = [lambda: node.lost(first, "killed"), lambda: node.said(second, messages.Leaving(reason="SIGTERM"), 1.0)]
    for happen in happens if order == "death first" else reversed(happens):
        happen()
    assert (node.leaving, node.record().state) == ("", WorkerState.FAILED)


def test_a_worker_that_gloo_has_forgotten(node):
    """It says so before it ends: the record tells it from a failure of its own; a failure that came first stays one."""
    told(node, generation(1))
    first, second = node.incarnation.workers.values()
    node.said(first, messages.Dying(error="forgotten", aftermath=True), 1.0)
    node.lost(first, "exit code 71")
    assert (node.record().state, node.record().aftermath) == (WorkerState.FAILED, True)
    node.begin(2)
    assert not node.record().aftermath
    node.fail("worker 0 is gone: killed")
    node.said(second, messages.Dying(error="forgotten", aftermath=True), 1.0)
    assert not node.record().aftermath


@pytest.mark.parametrize("order", list(permutations(("node", "worker", "death"))), ids=" ".join)
def test_a_node_that_was_asked_to_leave_leaves(node, order):
    """The signal came to the node and to its workers, as from a terminal; that one of them dies of it changes nothing."""
    told(node, generation(1))
    first, second = node.incarnation.workers.values()
    happens = {
        "node": lambda: node.leave("SIGTERM"),
        "worker": lambda: node.said(second, messages.Leaving(reason="SIGTERM"), 1.0),
        "death": lambda: node.lost(first, "killed"),
    }
    for happening in order:
        happens[happening]()
    assert (node.leaving, node.record().state, node.record().leaving) == ("SIGTERM", WorkerState.FAILED, True)


def test_a_member_that_is_turned_away(node):
    """It leaves, which is no failure of a member; a newcomer that is refused was none."""
    told(node, generation(1))
    first, _ = node.incarnation.workers.values()
    node.said(first, messages.Dying(error="it holds another state", refused=True), 1.0)
    assert [message.reason for _, message in node.refuse("it holds another state")] == ["it holds another state"] * 2
    assert (node.record().state, node.record().detail) == (
        WorkerState.LEFT,
        "worker 0 was refused: it holds another state",
    )
    for worker in list(node.incarnation.workers.values()):
        node.lost(worker, "exit code 1")
    assert node.record().state is WorkerState.LEFT
    node.begin(2)
    assert node.record().state is WorkerState.JOINING
