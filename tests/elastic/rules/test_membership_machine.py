"""Random orders of everything that can happen, nonsense and new leaders included.

`SimulatedRun` checks the rules that must hold after every decision. On top of that: whatever has happened, if everybody
does from now on what it is asked, the run comes to rest within a few steps: it trains, has ended, or is paused.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.rules.state import RescalePhase
from dtf_lightning.elastic.rules.status import describe
from support.cells import rest
from support.elastic.simulated_run import INSTANCE, SimulatedRun

MAX_STEPS_TO_REST = 40
PICK = st.integers(0, 99)
WHAT = [
    *("arrive_ready", "all_do_as_asked", "train", "time_comes") * 4,
    *("do_as_asked", "leave", "crash_and_restart", "get_ready", "leader_changes") * 2,
    *("arrive", "answer", "unwind_unasked", "all_leave", "press", "crash", "vanish", "restart", "suspect", "finish"),
    *("finish_all_but_one", "etcd_loses_a_lease", "register_again"),
]
"""Names of methods, as often as they shall happen."""


class Membership(RuleBasedStateMachine):
    """Seven nodes at most, up to four of them in the world."""

    run: SimulatedRun

    @initialize(
        min_nodes=st.integers(1, 3),
        spare=st.integers(0, 2),
        num_ready=st.integers(0, 5),
        in_a_row=st.sampled_from([100, 100, 2]),
        tolerance=st.sampled_from([100.0, 100.0, 0.9]),
        fresh=st.sampled_from([False, False, True]),
    )
    def begin(self, min_nodes, spare, num_ready, in_a_row, tolerance, fresh=False):
        self.run = SimulatedRun(
            min_nodes,
            min_nodes + spare,
            max_consecutive_failures=in_a_row,
            failure_tolerance=tolerance,
            fresh=fresh,
        )
        self.away: dict[str, NodeRecord] = {}
        for _ in range(num_ready):
            self.arrive_ready(0)
        self.run.advance(3.0)
        self.run.train()

    # --- helpers -----------------------------------------------------------------------------------------------------

    def pick(self, pick: int, nodes: list[str]) -> str | None:
        return nodes[pick % len(nodes)] if nodes else None

    def here(self) -> list[str]:
        return sorted(self.run.records)

    def members(self) -> list[str]:
        return [node for node in self.run.live_members() if self.is_current(node)]

    def is_current(self, node: str) -> bool:
        """The node's record is that of the live member."""
        return any(m.id == self.run.records[node].member_id for m in self.run.state.live)

    # --- what happens ------------------------------------------------------------------------------------------------

    @rule(what=st.sampled_from(WHAT), pick=PICK)
    def happens(self, what, pick):
        """One event; most are such as happen all day, so that a run gets somewhere before it is disturbed."""
        getattr(self, what)(pick)

    def arrive(self, pick):
        """A new agent; node ids are unique for every start of an agent."""
        if len(self.run.records) < 7:
            self.run.join(f"n{self.run.num_registered}")

    def arrive_ready(self, pick):
        if len(self.run.records) < 7:
            node = f"n{self.run.num_registered}"
            self.run.join(node)
            self.run.ready(node)

    def get_ready(self, pick):
        waiting = [node for node in self.here() if self.run.records[node].state is WorkerState.JOINING]
        if node := self.pick(pick, waiting):
            self.run.ready(node)

    def do_as_asked(self, pick):
        if node := self.pick(pick, self.members()):
            self.obey(node)

    def all_do_as_asked(self, pick):
        for node in self.members():
            if node in self.run.records and self.is_current(node):
                self.obey(node)

    def train(self, pick):
        self.run.train()

    def time_comes(self, pick):
        """As much time passes as the core waits for."""
        if self.run.wait.until is not None:
            self.run.advance(self.run.wait.until - self.run.now)

    def answer(self, pick):
        if self.run.phase is RescalePhase.PREPARING and (node := self.pick(pick, self.members())):
            self.run.answer(node, boundary=pick)

    def unwind_unasked(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.ready(node)

    def leave(self, pick):
        living = [n for n in self.here() if self.run.records[n].state not in (WorkerState.FAILED, WorkerState.LEFT)]
        if node := self.pick(pick, living):
            self.run.leave(node)

    def all_leave(self, pick):
        for node in self.members():
            self.run.leave(node)

    def press(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.press(node)

    def crash(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.crash(node)

    def crash_and_restart(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.crash(node)
            self.run.restart(node)

    def vanish(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.gone(node)

    def restart(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.restart(node)

    def suspect(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.suspect(node)

    def finish(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.finish(node)

    def finish_all_but_one(self, pick):
        for node in self.members()[1:]:
            self.run.finish(node)

    def leader_changes(self, pick):
        self.run.take_over(reachable=tuple(self.away))

    def etcd_loses_a_lease(self, pick):
        """A node's key goes while its agent lives and answers; the leader changes at the same moment."""
        if node := self.pick(pick, self.members()):
            self.away[node] = self.run.records.pop(node)
            self.run.take_over(reachable=tuple(self.away))

    def register_again(self, pick):
        if node := self.pick(pick, sorted(self.away)):
            self.run.write(self.away.pop(node))

    @rule(
        pick=PICK,
        incarnation=st.integers(1, 3),
        state=st.sampled_from(WorkerState),
        ready_after=st.none() | st.integers(-1, 9),
        number=st.integers(0, 9),
        num_workers=st.integers(-1, 3),
        leaving=st.booleans(),
        instance=st.sampled_from(["", INSTANCE, "another"]),
        boundary=st.none() | st.tuples(st.integers(0, 9), st.integers(-5, 99)),
    )
    def talk_nonsense(self, pick, **fields):
        """A peer of another version, or with a bug."""
        if node := self.pick(pick, self.here()):
            number = fields.pop("number")
            record = replace(self.run.records[node], generation=number, suspect=number, finished=number, **fields)
            known = self.run.records[node]
            # The end of an incarnation that breaks the rules is known from here on.
            self.run.known_dead.add(known.member_id)
            self.run.known_dead.add(record.member_id)
            self.run.write(record)
            self.run.gone(node, "it made no sense")

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.3, 3.0, 12.0, 61.0, 600.0]))
    def time_passes(self, seconds):
        self.run.advance(seconds)

    # --- coming to rest ----------------------------------------------------------------------------------------------

    def obey(self, node: str) -> None:
        """The member does what it is asked now."""
        run = self.run
        finished = run.records[node].finished == run.generation.number
        match run.phase:
            case RescalePhase.PREPARING if not finished:
                run.answer(node)
            case RescalePhase.STOPPING if run.records[node].member_id in run.directive.leaving:
                run.left(node)
            case RescalePhase.STOPPING if not finished:
                run.ready(node)
            case RescalePhase.REFORMING | RescalePhase.GATHERING:
                run.ready(node)
            case _:
                pass

    @rule()
    def come_to_rest(self):
        """Everybody does what it is asked."""
        for _ in range(MAX_STEPS_TO_REST):
            for node in sorted(self.away):
                self.run.write(self.away.pop(node))
            for node in self.members():
                if node in self.run.records and self.is_current(node):
                    self.obey(node)
            self.run.train()
            if self.run.phase in (RescalePhase.FINISHED, RescalePhase.ABORTED) or self.run.wait.paused:
                return
            if self.run.phase is RescalePhase.STABLE and self.run.wait.until is None:
                return
            if self.run.wait.until is not None:
                self.run.advance(self.run.wait.until - self.run.now)
        raise AssertionError(f"no rest: {self.run.wait.reason}; {self.run.state.history}")

    # --- always ------------------------------------------------------------------------------------------------------

    @invariant()
    def has_one_story(self):
        state = self.run.state
        ids = {member.id for member in self.run.generation.members}
        assert state.generation == self.run.generation
        assert state.departures.keys() <= ids
        if state.phase is RescalePhase.STABLE:
            assert not [d for d in state.departures.values() if d.kind.value != "finished"]
        if state.phase in (RescalePhase.PREPARING, RescalePhase.STOPPING, RescalePhase.REFORMING):
            assert self.run.wait.until is not None or state.phase is RescalePhase.STOPPING
        assert describe(self.run.settings, state, self.run.now, self.run.wall)


Membership.TestCase.settings = settings(
    max_examples=120, stateful_step_count=50, derandomize=True, database=None, deadline=None
)
TestMembership = Membership.TestCase


@pytest.mark.parametrize("seed", [*range(12), *map(rest, range(12, 40))])
def test_long_lives(seed):
    """Hundreds of events in a row, from a fixed seed: deeper than the machine's examples, which are short to shrink."""
    chance = random.Random(seed)
    machine = Membership()
    for event in range(500):
        if event == 0 or machine.run.phase in (RescalePhase.FINISHED, RescalePhase.ABORTED):
            limits = chance.choice([(100, 100.0), (100, 100.0), (3, 100.0), (100, 0.7)])
            machine.begin(
                chance.randint(1, 3), chance.randint(0, 2), chance.randint(0, 5), *limits, chance.random() < 0.3
            )
        if chance.random() < 0.05:
            machine.come_to_rest()
        elif chance.random() < 0.1:
            machine.time_passes(chance.choice([0.01, 0.1, 0.3, 3.0, 61.0]))
        else:
            machine.happens(chance.choice(WHAT), chance.randrange(100))
        machine.has_one_story()
