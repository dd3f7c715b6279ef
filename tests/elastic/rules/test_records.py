"""Records, directives and generations: their tables and their JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.rules.directives import Directive, DirectiveKind
from dtf_lightning.elastic.rules.generation import Failure, Generation, Member
from dtf_lightning.elastic.rules.records import (
    WORKER_TRANSITIONS,
    IllegalTransition,
    NodeRecord,
    WorkerState,
    follow,
    reachable,
)
from dtf_lightning.elastic.rules.state import PHASE_TRANSITIONS, MembershipState, RescalePhase, move
from dtf_lightning.errors import ProtocolError

RECORD = NodeRecord(node="node-b", host="h", num_workers=2, incarnation=3)


def test_every_worker_state_is_in_the_table():
    """Each has its row, `failed` and `left` have no way out, and all can be reached from `joining`."""
    assert WORKER_TRANSITIONS.keys() == set(WorkerState)
    assert not WORKER_TRANSITIONS[WorkerState.FAILED] | WORKER_TRANSITIONS[WorkerState.LEFT]
    assert reachable(WorkerState.JOINING) == set(WorkerState)


def test_every_phase_is_in_the_table():
    """Each has its row, and only the ends have no way out."""
    assert PHASE_TRANSITIONS.keys() == set(RescalePhase)
    assert {phase for phase, following in PHASE_TRANSITIONS.items() if not following} == {
        RescalePhase.FINISHED,
        RescalePhase.ABORTED,
    }


def test_states_may_be_missed():
    """A watch that re-reads the keys sees joining, then active: syncing lay between."""
    trail = follow((), None, RECORD)
    trail = follow(trail, RECORD, replace(RECORD, state=WorkerState.ACTIVE))
    assert trail == ("joining", "active")


def test_an_illegal_transition_prints_its_history():
    """left -> active: the message has who, what, what would be allowed, and the way that led there."""
    records = [replace(RECORD, state=state) for state in (WorkerState.JOINING, WorkerState.ACTIVE)]
    records.append(replace(RECORD, state=WorkerState.LEFT, detail="SIGTERM"))
    trail: tuple[str, ...] = ()
    for known, record in zip([None, *records], records, strict=False):
        trail = follow(trail, known, record)
    with pytest.raises(IllegalTransition) as caught:
        follow(trail, records[-1], records[1])
    assert str(caught.value) == (
        "node-b#3: left -> active is not allowed (left may be followed by nothing); "
        "history, oldest first: joining -> active -> left (SIGTERM)"
    )


def test_an_illegal_phase_prints_its_history():
    """Our own bug would say how it came about."""
    state = move(MembershipState(epoch=4), RescalePhase.STABLE, "generation 1")
    with pytest.raises(IllegalTransition, match=r"leader \(epoch 4.*stable -> stopping.*stable \(generation 1\)"):
        move(state, RescalePhase.STOPPING, "why not")


def test_trails_are_short():
    """A long life does not grow the message without end."""
    trail: tuple[str, ...] = ()
    known = None
    for number in range(100):
        record = replace(RECORD, state=WorkerState.SYNCING if number % 2 else WorkerState.ACTIVE)
        trail = follow(trail, known, record)
        known = record
    assert len(trail) == 12


def test_an_id_names_one_incarnation():
    """node#incarnation, for records and members alike."""
    assert RECORD.member_id == RECORD.member().id == "node-b#3"


records = st.builds(
    NodeRecord,
    node=st.text(min_size=1, max_size=8),
    host=st.text(max_size=8),
    num_workers=st.integers(1, 8),
    incarnation=st.integers(1, 9),
    state=st.sampled_from(WorkerState),
    ready_after=st.none() | st.integers(0, 9),
    boundary=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 999)),
    leaving=st.booleans(),
)


@given(records, st.integers(0, 99))
def test_records_round_trip(record, order):
    """Through JSON and back; the order comes from the key."""
    text = json.dumps(record.to_json())
    assert NodeRecord.from_json(json.loads(text), order=order) == replace(record, order=order)


def test_generations_round_trip():
    """Through JSON and back, with members, failures and recent worlds."""
    generation = Generation(
        number=3,
        members=(Member(node="a", incarnation=1, num_workers=2, host="h"),),
        failures=(Failure(member="b#1", generation=2, num_workers=2, at=5.0, reason="killed"),),
        recent_worlds=((1.5, 4),),
    )
    assert Generation.from_json(json.loads(json.dumps(generation.to_json()))) == generation


def test_directives_round_trip():
    """Through JSON and back."""
    directive = Directive(kind=DirectiveKind.FAIL, target=3, failed=("a#1",), departed=("b#1",), suspects=("c#1",))
    assert Directive.from_json(json.loads(json.dumps(directive.to_json()))) == directive


@pytest.mark.parametrize("read", [NodeRecord.from_json, Generation.from_json, Directive.from_json])
@pytest.mark.parametrize("data", [{}, {"state": "asleep"}, {"kind": "dance"}, {"from": "the future"}])
def test_other_json_is_a_protocol_error(read, data):
    """Missing, unknown and new fields: the error names what was got and what to look at."""
    with pytest.raises(ProtocolError, match="do all nodes run the same dtf-lightning"):
        read(data)


def test_ranks():
    """Members' first ranks follow from the sizes before them; strangers have none."""
    members = tuple(Member(node=node, incarnation=1, num_workers=size) for node, size in (("a", 2), ("b", 1), ("c", 4)))
    generation = Generation(number=1, members=members)
    assert [generation.first_rank(member.id) for member in members] == [0, 2, 3]
    assert generation.world_size == 7
    with pytest.raises(KeyError):
        generation.first_rank("x#1")
