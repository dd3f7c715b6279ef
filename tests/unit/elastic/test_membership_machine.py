"""Random orders of everything that can happen, nonsense and new coordinators included.

`SimulatedRun` checks the rules that must hold after every decision. On top of that: whatever has happened, if everybody
does from now on what it is asked, the run comes to rest within a few steps: it trains, has ended, or is paused.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dtf_lightning.elastic.records import NodeRecord, WorkerState
from dtf_lightning.elastic.state import Phase
from dtf_lightning.elastic.status import describe
from support.simulated_run import INSTANCE, SimulatedRun

MAX_STEPS_TO_REST = 40
NODES = st.integers(0, 6).map(lambda number: f"n{number}")
PICK = st.integers(0, 99)


class Membership(RuleBasedStateMachine):
    """Seven nodes at most, up to four of them in the world."""

    run: SimulatedRun

    @initialize(
        min_nodes=st.integers(1, 3),
        spare=st.integers(0, 2),
        in_a_row=st.sampled_from([2, 100]),
        tolerance=st.sampled_from([0.6, 100.0]),
    )
    def begin(self, min_nodes, spare, in_a_row, tolerance):
        self.run = SimulatedRun(
            min_nodes,
            min_nodes + spare,
            max_consecutive_failures=in_a_row,
            failure_tolerance=tolerance,
        )
        self.away: dict[str, NodeRecord] = {}

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

    @rule(node=NODES)
    def arrive(self, node):
        """A new agent; node ids are unique for every start of an agent, so an old one gets a new id."""
        fresh = f"{node}.{self.run.num_registered}"
        if len(self.run.records) < 7:
            self.run.join(fresh)

    @rule(node=NODES)
    def arrive_ready(self, node):
        if len(self.run.records) < 7:
            fresh = f"{node}.{self.run.num_registered}"
            self.run.join(fresh)
            self.run.ready(fresh)

    @rule(pick=PICK)
    def get_ready(self, pick):
        waiting = [node for node in self.here() if self.run.records[node].state is WorkerState.JOINING]
        if node := self.pick(pick, waiting):
            self.run.ready(node)

    @rule(pick=PICK)
    def do_as_asked(self, pick):
        if node := self.pick(pick, self.members()):
            self.obey(node)

    @rule()
    def train(self):
        self.run.train()

    @rule(pick=PICK, boundary=st.integers(0, 50))
    def answer(self, pick, boundary):
        if self.run.phase is Phase.PREPARING and (node := self.pick(pick, self.members())):
            self.run.answer(node, boundary=boundary)

    @rule(pick=PICK)
    def unwind_unasked(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.ready(node)

    @rule(pick=PICK)
    def leave(self, pick):
        if node := self.pick(pick, self.here()):
            record = self.run.records[node]
            if record.state not in (WorkerState.FAILED, WorkerState.LEFT):
                self.run.leave(node)

    @rule(pick=PICK)
    def crash(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.crash(node)

    @rule(pick=PICK)
    def vanish(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.gone(node)

    @rule(pick=PICK)
    def restart(self, pick):
        if node := self.pick(pick, self.here()):
            self.run.restart(node)

    @rule(pick=PICK)
    def suspect(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.suspect(node)

    @rule(pick=PICK)
    def finish(self, pick):
        if node := self.pick(pick, self.members()):
            self.run.finish(node)

    @precondition(lambda self: self.run.phase is Phase.STABLE)
    @rule()
    def finish_all_but_one(self):
        for node in self.members()[1:]:
            self.run.finish(node)

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

    @rule()
    def coordinator_changes(self):
        self.run.take_over(reachable=tuple(self.away))

    @rule(pick=PICK)
    def etcd_loses_a_lease(self, pick):
        """A node's key goes while its agent lives and answers; the coordinator changes at the same moment."""
        if node := self.pick(pick, self.members()):
            self.away[node] = self.run.records.pop(node)
            self.run.take_over(reachable=tuple(self.away))

    @rule(pick=PICK)
    def register_again(self, pick):
        if node := self.pick(pick, sorted(self.away)):
            self.run.write(self.away.pop(node))

    # --- coming to rest ----------------------------------------------------------------------------------------------

    def obey(self, node: str) -> None:
        """The member does what it is asked now."""
        run = self.run
        finished = run.records[node].finished == run.generation.number
        match run.phase:
            case Phase.PREPARING if not finished:
                run.answer(node)
            case Phase.STOPPING if run.records[node].member_id in run.directive.leaving:
                run.left(node)
            case Phase.STOPPING if not finished:
                run.ready(node)
            case Phase.REFORMING | Phase.GATHERING:
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
            if self.run.phase in (Phase.FINISHED, Phase.ABORTED) or self.run.wait.paused:
                return
            if self.run.phase is Phase.STABLE and self.run.wait.until is None:
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
        if state.phase is Phase.STABLE:
            assert not [d for d in state.departures.values() if d.kind.value != "finished"]
        if state.phase in (Phase.PREPARING, Phase.STOPPING, Phase.REFORMING):
            assert self.run.wait.until is not None or state.phase is Phase.STOPPING
        assert describe(self.run.settings, state, self.run.now, self.run.wall)


Membership.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, derandomize=True, database=None, deadline=None
)
TestMembership = Membership.TestCase
