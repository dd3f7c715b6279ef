"""What a run's leader knows: the phase, the nodes' records, which members are out and why.

Events change this state here; `membership.py` decides what follows from it. Rules that this file guards:

* phases change along `PHASE_TRANSITIONS` only;
* a member of the generation is either live or in `departures`, and never comes back from there;
* an incarnation that ended, or a lower one, is not listened to any more (`retired`);
* everything but clocks can be rebuilt from the keys alone (`take_over`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from dtf_lightning.elastic.rules.directives import Directive, DirectiveKind, Event, NodeChanged, NodeGone
from dtf_lightning.elastic.rules.generation import Failure, Generation, Member, split_id
from dtf_lightning.elastic.rules.records import ENDED, IllegalTransition, NodeRecord, WorkerState, follow
from dtf_lightning.elastic.settings import ElasticSettings


class RescalePhase(Enum):
    """Where a run is on the way from one generation to the next."""

    GATHERING = "gathering"  # nobody trains: before the first generation, or too few survivors
    STABLE = "stable"  # a generation trains
    PREPARING = "preparing"  # its members say at which boundary they are
    STOPPING = "stopping"  # they go on to the agreed boundary
    REFORMING = "reforming"  # the generation is broken, survivors unwind
    FINISHED = "finished"
    ABORTED = "aborted"


PHASE_TRANSITIONS: Mapping[RescalePhase, Mapping[RescalePhase, str]] = {
    RescalePhase.GATHERING: {
        RescalePhase.STABLE: "enough nodes are ready",
        RescalePhase.REFORMING: "a survivor is not ready any more",
        RescalePhase.FINISHED: "the last member left",
        RescalePhase.ABORTED: "too many failures",
    },
    RescalePhase.STABLE: {
        RescalePhase.PREPARING: "joins or leaves, window over",
        RescalePhase.REFORMING: "a member died or reports a broken generation",
        RescalePhase.FINISHED: "all members finished",
        RescalePhase.ABORTED: "too many failures, or workers stopped apart",
    },
    RescalePhase.PREPARING: {
        RescalePhase.STOPPING: "all members answered",
        RescalePhase.REFORMING: "a member died, is silent or reports a broken generation",
        RescalePhase.FINISHED: "all members finished",
        RescalePhase.ABORTED: "too many failures, or workers stopped apart",
    },
    RescalePhase.STOPPING: {
        RescalePhase.STABLE: "all who stay are ready",
        RescalePhase.GATHERING: "fewer than min_nodes are left",
        RescalePhase.REFORMING: "a member died, is silent or reports a broken generation",
        RescalePhase.FINISHED: "all members finished",
        RescalePhase.ABORTED: "too many failures, or workers stopped apart",
    },
    RescalePhase.REFORMING: {
        RescalePhase.STABLE: "all survivors are ready",
        RescalePhase.GATHERING: "fewer than min_nodes survived",
        RescalePhase.REFORMING: "another member is silent",
        RescalePhase.ABORTED: "too many failures",
    },
    RescalePhase.FINISHED: {},
    RescalePhase.ABORTED: {},
}


class DepartureKind(Enum):
    """How a member of the generation came to be out of it."""

    FAILED = "failed"  # died, was evicted or broke the rules: counts as a failure
    LEFT = "left"  # said goodbye
    DRAINED = "drained"  # died after it had been asked to leave: no failure
    FINISHED = "finished"  # died after it had come to the end of training: no failure


@dataclass(frozen=True, kw_only=True)
class Departure:
    member: Member
    kind: DepartureKind
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The world that the leader would form now, and since when it has been the same."""

    members: frozenset[str] = frozenset()
    """Ids of the members that would be in that world."""
    on_the_way: frozenset[str] = frozenset()
    """Nodes that have registered, are not ready, and would find a place."""
    changed_at: float = 0.0
    """When `members` or `on_the_way` last changed, in monotonic seconds."""
    wanted_since: float | None = None
    """Since when there has been a reason to form this world, in monotonic seconds; `None` while there is none."""


@dataclass(frozen=True, kw_only=True)
class MembershipState:
    """Everything that `decide` bases its decision on."""

    epoch: int = 0
    instance: str = ""
    phase: RescalePhase = RescalePhase.GATHERING
    generation: Generation = field(default_factory=lambda: Generation(number=0))
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    """Each node's latest record; those that have ended are here as long as their key is in etcd."""
    departures: Mapping[str, Departure] = field(default_factory=dict)
    """The members of the generation that are out, by member id."""
    retired: Mapping[str, int] = field(default_factory=dict)
    """Each node's highest incarnation that has ended; records of it and of lower ones are ignored."""
    failures: tuple[Failure, ...] = ()
    """Recent failures, of the running and of earlier generations, oldest first."""
    trained: bool = False
    """A member, of this generation or an earlier one, has made optimizer steps of the run."""
    presumed: bool = False
    """That is assumed, and no leader has heard of a step."""
    directive: Directive | None = None
    """The latest directive, while it is in force (on the way to the next generation, or for good)."""
    asked_at: float = 0.0
    """When the directive was published, or taken over from another leader, in monotonic seconds."""
    first_ready_at: float | None = None
    """STOPPING: when the first member was seen at the boundary, in monotonic seconds."""
    apart_since: float | None = None
    """Since when workers have stood apart (`stops.py`), in monotonic seconds; `None` while they do not."""
    plan: Plan = field(default_factory=Plan)
    trails: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Each node's states so far, of its present incarnation, for error messages."""
    history: tuple[str, ...] = ()
    """The run's phases so far, oldest first, for error messages and people."""

    @property
    def live(self) -> tuple[Member, ...]:
        """The generation's members that are not out, in rank order."""
        return tuple(member for member in self.generation.members if member.id not in self.departures)

    def record(self, member: Member) -> NodeRecord | None:
        """Return the member's latest record; `None` while its key is away."""
        record = self.nodes.get(member.node)
        return record if record is not None and record.incarnation == member.incarnation else None

    def is_ready(self, member: Member) -> bool:
        """Tell whether the member's workers are unwound from the running generation."""
        record = self.record(member)
        return record is not None and record.ready_after is not None and record.ready_after >= self.generation.number

    def has_finished(self, member: Member) -> bool:
        record = self.record(member)
        return record is not None and record.finished > 0 and record.finished == self.generation.number

    def is_leaving(self, member: Member) -> bool:
        record = self.record(member)
        return record is not None and (record.leaving or record.state is WorkerState.DRAINING)

    @property
    def newcomers(self) -> tuple[NodeRecord, ...]:
        """Nodes that are registered, are in no generation and do not leave, rank zero of set-up first, then by arrival."""
        members = {member.node for member in self.live}
        found = [
            record
            for record in self.nodes.values()
            if record.node not in members
            and record.incarnation > self.retired.get(record.node, 0)
            and record.state not in ENDED
            and record.state is not WorkerState.DRAINING
            and not record.leaving
        ]
        return tuple(sorted(found, key=lambda record: (not record.rank_zero, record.order, record.node)))

    def is_candidate(self, newcomer: NodeRecord) -> bool:
        """Tell whether the node is admitted to this instance of the run and its workers wait for a generation."""
        # This incarnation was in a generation, was put out of it while frozen or cut off, and has woken up.
        stray = newcomer.generation > 0 and (newcomer.ready_after or 0) > 0
        admitted = newcomer.instance != "" and newcomer.instance == self.instance
        return admitted and newcomer.ready_after is not None and newcomer.num_workers > 0 and not stray


def move(state: MembershipState, phase: RescalePhase, why: str) -> MembershipState:
    """Return the state in another phase. Raises `IllegalTransition` (our bug) if the table has no such transition."""
    allowed = PHASE_TRANSITIONS[state.phase]
    if phase not in allowed:
        names = ", ".join(following.value for following in allowed) or "nothing"
        raise IllegalTransition(
            f"leader (epoch {state.epoch}, generation {state.generation.number})",
            f"{state.phase.value} -> {phase.value} ({why})",
            f"{state.phase.value} may be followed by {names}",
            state.history,
        )
    return replace(state, phase=phase, history=(*state.history, f"{phase.value} ({why})")[-20:])


def enter(state: MembershipState, generation: Generation, now: float) -> MembershipState:
    """Return the state in which `generation` is the running one; no member that is out comes back."""
    retired = dict(state.retired)
    for member_id in generation.retired:
        retired = _retire(retired, *split_id(member_id))
    return replace(
        state,
        generation=generation,
        departures={},
        retired=retired,
        failures=generation.failures,
        trained=generation.trained,
        presumed=generation.presumed,
        directive=None,
        first_ready_at=None,
        plan=Plan(changed_at=now),
    )


# --- events ----------------------------------------------------------------------------------------------------------


def observe(state: MembershipState, event: Event, wall: float) -> MembershipState:
    """Return the state after an event.

    A node whose record breaks the rules is put out, with the reason; nothing is raised for it.
    """
    match event:
        case NodeChanged(record=record):
            return _changed(state, record, wall)
        case NodeGone(node=node, cause=cause):
            return _gone(state, node, cause, wall)
        case _:
            return state


def depart(state: MembershipState, member: Member, kind: DepartureKind, reason: str, wall: float) -> MembershipState:
    """Return the state with `member` out for good. `FAILED` adds it to the failures."""
    if member.id in state.departures:
        return state
    failures = state.failures
    if kind is DepartureKind.FAILED:
        failures += (
            Failure(
                member=member.id,
                generation=state.generation.number,
                num_workers=member.num_workers,
                at=wall,
                reason=reason,
                counts=not _ended_by_another(state, member),
            ),
        )
    departure = Departure(member=member, kind=kind, reason=reason)
    return replace(
        state,
        departures={**state.departures, member.id: departure},
        failures=failures,
        retired=_retire(state.retired, member.node, member.incarnation),
    )


def _changed(state: MembershipState, record: NodeRecord, wall: float) -> MembershipState:
    known = state.nodes.get(record.node)
    latest = max(state.retired.get(record.node, 0), known.incarnation - 1 if known is not None else 0)
    if record.incarnation <= latest:
        return state
    member = next((member for member in state.live if member.node == record.node), None)
    if member is not None and member.incarnation < record.incarnation:
        reason = f"its workers were started anew (incarnation {record.incarnation}) before their end was seen"
        state = depart(state, member, _unannounced(state, member), reason, wall)
        member = None
    same = known if known is not None and known.incarnation == record.incarnation else None
    broken_rule = ""
    trail = state.trails.get(record.node, ()) if same is not None else ()
    try:
        trail = follow(trail, same, record)
    except IllegalTransition as error:
        broken_rule = str(error)
    state = replace(
        state,
        nodes={**state.nodes, record.node: record},
        trails={**state.trails, record.node: trail},
        trained=state.trained or (member is not None and record.trained),
        presumed=state.presumed and not (member is not None and record.trained),
    )
    if not broken_rule and record.state not in ENDED:
        return state
    if member is not None:
        if broken_rule:
            kind = DepartureKind.FAILED
        elif record.state is WorkerState.LEFT:
            kind = DepartureKind.LEFT
        else:
            kind = _unannounced(state, member)
        state = depart(state, member, kind, broken_rule or record.detail or record.state.value, wall)
    return replace(state, retired=_retire(state.retired, record.node, record.incarnation))


def _gone(state: MembershipState, node: str, cause: str, wall: float) -> MembershipState:
    member = next((member for member in state.live if member.node == node), None)
    if member is not None:
        state = depart(state, member, _unannounced(state, member), cause or "its key is gone", wall)
    # A newcomer's id is not retired: it never held a place, and it may register again when etcd was away.
    return replace(
        state,
        nodes={name: record for name, record in state.nodes.items() if name != node},
        trails={name: trail for name, trail in state.trails.items() if name != node},
    )


def _unannounced(state: MembershipState, member: Member) -> DepartureKind:
    """Return what it means that a member ended without having said that it leaves."""
    if state.has_finished(member):
        return DepartureKind.FINISHED
    told_to_leave = (
        state.phase is RescalePhase.STOPPING and state.directive is not None and member.id in state.directive.leaving
    )
    if told_to_leave or state.is_leaving(member):
        return DepartureKind.DRAINED
    return DepartureKind.FAILED


def _ended_by_another(state: MembershipState, member: Member) -> bool:
    """Tell whether the member says that another's death has ended it, and there was one in this generation."""
    record = state.record(member)
    number = state.generation.number
    return record is not None and record.aftermath and any(f.generation == number and f.counts for f in state.failures)


def _retire(retired: Mapping[str, int], node: str, incarnation: int) -> dict[str, int]:
    return {**retired, node: max(incarnation, retired.get(node, 0))}


# --- taking over -----------------------------------------------------------------------------------------------------

_PHASES = {
    DirectiveKind.PREPARE: RescalePhase.PREPARING,
    DirectiveKind.STOP: RescalePhase.STOPPING,
    DirectiveKind.FAIL: RescalePhase.REFORMING,
    DirectiveKind.FINISH: RescalePhase.FINISHED,
    DirectiveKind.ABORT: RescalePhase.ABORTED,
}


def take_over(
    settings: ElasticSettings,
    *,
    epoch: int,
    instance: str,
    generation: Generation | None,
    directive: Directive | None,
    records: Iterable[NodeRecord],
    now: float,
    wall: float,
    reachable: Collection[str] = (),
    trained: bool = False,
    untrained: bool = False,
    all_left: bool = False,
) -> MembershipState:
    """Return the state of a new leader, from the keys alone, in whatever phase its predecessor died.

    A member of the generation without a record counts as gone, unless its node is in `reachable`: nodes whose key is
    away but whose agent answers (etcd lost their leases; they will register again). For those the caller must send
    `NodeChanged` or `NodeGone` in the end. Deadlines start anew at `now`. `trained`: the caller knows, or has to assume,
    that members whose records are gone have made optimizer steps. `untrained`: and no leader before has heard
    of a step. `all_left`: no member of the generation is left, and none has failed.
    """
    del settings  # the same for every leader; part of the signature so that rules here may come to depend on it
    if generation is None or (generation.instance and generation.instance != instance):
        generation = Generation(number=0)
    phase = RescalePhase.STABLE if generation.number > 0 else RescalePhase.GATHERING
    if directive is not None and (
        directive.target == generation.number + 1 or directive.kind in (DirectiveKind.FINISH, DirectiveKind.ABORT)
    ):
        phase = _PHASES[directive.kind]
        if generation.number == 0 and phase not in (RescalePhase.FINISHED, RescalePhase.ABORTED):
            phase, directive = RescalePhase.GATHERING, None
    else:
        directive = None
    if all_left and phase not in (RescalePhase.FINISHED, RescalePhase.ABORTED):
        phase, directive = RescalePhase.GATHERING, None
    state = MembershipState(
        epoch=epoch,
        instance=instance,
        phase=phase,
        generation=generation,
        retired=_retired_before(generation),
        failures=generation.failures,
        trained=generation.number > 0 and (trained or generation.trained),
        presumed=generation.presumed or (generation.number > 0 and untrained and trained and not generation.trained),
        directive=directive,
        asked_at=now,
        plan=Plan(changed_at=now),
        history=(f"{phase.value} (taken over at generation {generation.number})",),
    )
    state = _as_told(state, wall)
    for record in records:
        state = observe(state, NodeChanged(record), wall)
    for member in state.live:
        if state.record(member) is None and member.node not in reachable:
            kind = DepartureKind.DRAINED if all_left else _unannounced(state, member)
            state = depart(state, member, kind, "it was gone when a new leader took over", wall)
    return state


def _retired_before(generation: Generation) -> dict[str, int]:
    retired: dict[str, int] = {}
    for member in generation.members:
        retired = _retire(retired, member.node, member.incarnation - 1)
    for member_id in generation.retired:
        retired = _retire(retired, *split_id(member_id))
    return retired


def _as_told(state: MembershipState, wall: float) -> MembershipState:
    """Put out the members that the predecessor's directive had put out, for the reasons that it gave."""
    told = state.directive
    if told is None:
        return state
    for member in state.live:
        if member.id in told.failed:
            state = depart(state, member, DepartureKind.FAILED, told.reason, wall)
        elif member.id in told.departed:
            state = depart(state, member, DepartureKind.DRAINED, told.reason, wall)
    return suspected(state, told.suspects, told.reason, wall)


def suspected(state: MembershipState, member_ids: Iterable[str], reason: str, wall: float) -> MembershipState:
    """Note members that reported the running generation as broken: listed with the failures, counted as no worker."""
    reports = tuple(
        Failure(member=member_id, generation=state.generation.number, num_workers=0, at=wall, reason=reason)
        for member_id in member_ids
    )
    return replace(state, failures=state.failures + reports)
