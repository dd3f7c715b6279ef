"""A run without processes: nodes' records and a clock on one side, the membership core on the other.

Methods say what happens to a node; the core decides, what it writes is kept, and the rules that must hold are checked
after every decision.
"""

from __future__ import annotations

from dataclasses import replace

from dtf_lightning.elastic.rules.directives import (
    Directive,
    DirectiveKind,
    Form,
    NodeChanged,
    NodeGone,
    Publish,
    TimePassed,
    Wait,
)
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.membership import decide, take_over
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.rules.state import MembershipState, RescalePhase
from dtf_lightning.elastic.settings import ElasticSettings

INSTANCE = "instance-1"
WALL = 1_700_000_000.0
"""Seconds since the epoch when the monotonic clock stands at 0: 2023-11-14T22:13:20Z."""
MAX_DECISIONS = 8
"""In a row without a wait."""
MAX_WAITS = 100
"""That end by themselves while nothing happens."""


class SimulatedRun:
    """`generations` and `directives` are the keys' histories, `wait` the latest decision to wait."""

    def __init__(self, min_nodes: int = 1, max_nodes: int = 4, *, workers: int = 2, **settings) -> None:
        self.settings = ElasticSettings(min_nodes=min_nodes, max_nodes=max_nodes, **settings)
        self.workers = workers
        self.now = 0.0
        self.records: dict[str, NodeRecord] = {}
        self.generations: list[Generation] = []
        self.directives: list[Directive] = []
        self.wait = Wait(reason="")
        self.num_registered = 0
        self.known_dead: set[str] = set()
        """Member ids whose end the core has been told of."""
        self.ids_out: set[str] = set()
        """Member ids that were in a generation and are not any more."""
        self.has_trained = False
        """Whether a member has told the core that it made steps; false again where a generation begins the run anew."""
        self.epoch = 0
        self.state: MembershipState
        self.take_over()

    # --- what the tests look at --------------------------------------------------------------------------------------

    @property
    def wall(self) -> float:
        return WALL + self.now

    @property
    def phase(self) -> RescalePhase:
        return self.state.phase

    @property
    def generation(self) -> Generation:
        return self.generations[-1] if self.generations else Generation(number=0)

    @property
    def members(self) -> list[str]:
        """Of the current generation, in rank order: nodes, with their incarnation unless it is the first."""
        return [m.node if m.incarnation == 1 else m.id for m in self.generation.members]

    @property
    def directive(self) -> Directive:
        return self.directives[-1]

    # --- what happens ------------------------------------------------------------------------------------------------

    def join(self, *nodes: str, **fields) -> None:
        """Agents register; their workers set themselves up."""
        for node in nodes:
            self.num_registered += 1
            record = NodeRecord(
                node=node,
                host=f"host-{node}",
                num_workers=self.workers,
                store_port=29500,
                order=self.num_registered,
                instance=INSTANCE,
            )
            self.write(replace(record, **fields))

    def ready(self, *nodes: str) -> None:
        """Newcomers' workers are set up, or members' workers are unwound."""
        for node in nodes:
            record = self.records[node]
            member = any(member.id == record.member_id for member in self.generation.members)
            after = self.generation.number if member else 0
            self.change(node, ready_after=after, state=WorkerState.SYNCING)

    def start(self, *nodes: str) -> None:
        """They join, get ready and train."""
        self.join(*nodes)
        self.ready(*nodes)
        self.advance(self.settings.max_wait)
        self.train()
        assert self.phase is RescalePhase.STABLE

    def train(self) -> None:
        """The members take up the current generation."""
        for member in self.generation.members:
            record = self.records.get(member.node)
            if record is not None and record.incarnation == member.incarnation:
                state = WorkerState.DRAINING if record.leaving else WorkerState.ACTIVE
                self.change(member.node, generation=self.generation.number, ready_after=None, state=state, trained=True)

    def answer(self, *nodes: str, boundary: int = 10) -> None:
        """They say at which boundary they are."""
        for node in nodes:
            self.change(node, boundary=(self.directive.target, boundary))

    def leave(self, *nodes: str) -> None:
        """They are asked to leave."""
        for node in nodes:
            state = WorkerState.DRAINING if self.records[node].generation else self.records[node].state
            self.change(node, leaving=True, state=state, detail="SIGTERM")

    def press(self, *nodes: str) -> None:
        """Their grace periods come to an end."""
        for node in nodes:
            self.change(node, pressed=True)

    def left(self, *nodes: str) -> None:
        """They have left by agreement, and their keys go."""
        for node in nodes:
            self.change(node, state=WorkerState.LEFT, ready_after=None)
            self.gone(node, "left")

    def crash(self, node: str, detail: str = "worker 0 was killed by signal 9") -> None:
        """A worker dies; its agent lives and says so."""
        self.change(node, state=WorkerState.FAILED, ready_after=None, detail=detail)

    def restart(self, node: str) -> None:
        """The agent starts its workers anew."""
        record = self.records[node]
        self.write(
            NodeRecord(
                node=node,
                host=record.host,
                num_workers=record.num_workers,
                incarnation=record.incarnation + 1,
                store_port=record.store_port,
                order=record.order,
                instance=INSTANCE,
            )
        )

    def gone(self, node: str, cause: str = "its agent does not answer") -> None:
        """The node's key goes: it died, was evicted, or has left."""
        record = self.records.pop(node)
        self.known_dead.add(record.member_id)
        self.tell(NodeGone(node, cause))

    def suspect(self, *nodes: str) -> None:
        for node in nodes:
            self.change(node, suspect=self.generation.number, detail="all-reduce: Connection closed by peer")

    def finish(self, *nodes: str) -> None:
        """They come to the end of training."""
        for node in nodes:
            self.change(node, finished=self.generation.number)

    def planned_rescale(self, *, boundary: int = 10) -> None:
        """The members do what a planned rescale asks them; the new generation trains."""
        assert self.phase is RescalePhase.PREPARING, self.phase
        self.answer(*self.live_members(), boundary=boundary)
        assert self.phase is RescalePhase.STOPPING, self.phase
        leaving = {member_id.partition("#")[0] for member_id in self.directive.leaving}
        self.ready(*(node for node in self.live_members() if node not in leaving))
        self.train()
        self.left(*leaving & self.records.keys())

    def live_members(self) -> list[str]:
        return [member.node for member in self.state.live if member.node in self.records]

    def advance(self, seconds: float) -> None:
        """Time goes by; the core is called when it asked to be."""
        end = self.now + seconds
        for _ in range(MAX_WAITS):
            self.now = end if self.wait.until is None else min(end, self.wait.until)
            self.tell(TimePassed())
            if self.now >= end:
                return
        raise AssertionError(f"it wants to be woken without end: {self.wait}")

    def take_over(self, *, reachable: tuple[str, ...] = ()) -> None:
        """The leader dies; another one starts from the keys."""
        self.epoch += 1
        directive = self.directives[-1] if self.directives else None
        self.state = take_over(
            self.settings,
            epoch=self.epoch,
            instance=INSTANCE,
            generation=self.generations[-1] if self.generations else None,
            directive=directive,
            records=list(self.records.values()),
            now=self.now,
            wall=self.wall,
            reachable=reachable,
            trained=self.has_trained,
        )
        self.tell(TimePassed())

    # --- underneath --------------------------------------------------------------------------------------------------

    def change(self, node: str, **fields) -> None:
        self.write(replace(self.records[node], **fields))

    def write(self, record: NodeRecord) -> None:
        known = self.records.get(record.node)
        if known is not None and known.incarnation < record.incarnation:
            self.known_dead.add(known.member_id)
        if record.state in (WorkerState.FAILED, WorkerState.LEFT):
            self.known_dead.add(record.member_id)
        if record.trained and any(member.id == record.member_id for member in self.state.live):
            self.has_trained = True
        self.records[record.node] = record
        self.tell(NodeChanged(record))

    def tell(self, event) -> None:
        for _ in range(MAX_DECISIONS):
            before = self.state
            self.state, decision = decide(self.settings, self.state, event, self.now, self.wall)
            self.check(before, decision)
            match decision:
                case Wait():
                    self.wait = decision
                    return
                case Publish(directive=directive):
                    self.directives.append(directive)
                case Form(generation=generation):
                    self.generations.append(generation)
            event = TimePassed()
        raise AssertionError(f"no wait after {MAX_DECISIONS} decisions: {self.state.history}")

    def check(self, before: MembershipState, decision) -> None:
        """The rules that must hold (DESIGN), as far as the core can keep them."""
        assert decision.reason
        if isinstance(decision, Wait):
            assert decision.until is None or decision.until > self.now
        if isinstance(decision, Publish):
            directive = decision.directive
            assert Directive.from_json(directive.to_json()) == directive
            assert directive.epoch == self.epoch
            assert directive.target == self.generation.number + 1
            if directive.kind is DirectiveKind.STOP:
                answers = [
                    r.boundary[1] for r in self.records.values() if r.boundary and r.boundary[0] == directive.target
                ]
                assert directive.boundary == max(answers, default=0) + 2
                self.check_leavers(before, directive)
        if isinstance(decision, Form):
            self.check_generation(before, decision.generation)

    def check_leavers(self, before: MembershipState, stop: Directive) -> None:
        """Not all go who hold the state while somebody is there, or on the way, who could take it over."""
        live = [member.id for member in before.live]
        if set(stop.leaving) != set(live) or not live or self.settings.max_nodes == 1:
            return
        first = before.record(before.live[0])
        for newcomer in before.newcomers:
            assert not before.is_candidate(newcomer), f"{newcomer.node} could have taken the state over"
            assert first is None or first.pressed, f"{newcomer.node} was on the way"

    def check_generation(self, before: MembershipState, new: Generation) -> None:
        old = self.generation
        ids = [member.id for member in new.members]
        assert Generation.from_json(new.to_json()) == new
        assert new.number == old.number + 1, "one generation per number"
        assert self.settings.min_nodes <= len(ids) <= self.settings.max_nodes
        assert len({member.node for member in new.members}) == len(ids), "a node has one place"
        assert [new.first_rank(m.id) for m in new.members] == [
            sum(m.num_workers for m in new.members[:i]) for i in range(len(ids))
        ], "ranks are dense"
        survivors = [member.id for member in old.members if member.id in ids]
        assert ids[: len(survivors)] == survivors, "survivors keep their order and come first"
        seen = self.state.nodes
        joiners = [seen[member.node].order for member in new.members[len(survivors) :]]
        assert joiners == sorted(joiners), "joiners come in their order of arrival"
        assert not self.known_dead & set(ids), "nobody who is known to be out is in"
        assert not self.ids_out & set(ids), "no id comes back"
        self.ids_out |= {member.id for member in old.members} - set(ids)
        told = before.directive.leaving if before.directive is not None else ()
        left_behind = {member.id for member in before.live} - set(ids) - set(told) - self.known_dead
        assert not left_behind, "no survivor is left behind"
        for member in new.members:
            after = seen[member.node].ready_after
            assert after is not None, "everybody waits for it"
            assert member.id not in survivors or after >= old.number, "survivors have unwound"
        assert (new.store_host, new.store_port) == (f"host-{new.members[0].node}", 29500)
        assert new.instance == INSTANCE
        assert new.trained == (self.has_trained and (bool(survivors) or not self.settings.fresh)), (
            "nothing is forgotten"
        )
        self.has_trained = new.trained
        assert new.kind in {"start", "join", "leave", "failure", "mixed"}
