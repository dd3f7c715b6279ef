"""The leader's decisions: which nodes form a run's next generation, and when. One event in, one decision out.

`decide` sees a run as its leader does. The driver calls it with every event, does what it says (write a directive,
write a generation), and calls it again with `TimePassed` until it says `Wait`. The state that comes with a `Publish` or
`Form` takes the write as done: a driver whose write was fenced off throws that state away.

Rules that this file guards (on top of those in `generation.py` and `state.py`):

* a world has at least `min_nodes` and at most `max_nodes` nodes; below that the run pauses, above it nodes are spares;
* no member that is known to be out is in a new generation, and no survivor is left behind while it lives;
* every wait that hangs on a member's answer has a deadline, after which that member is put out;
* the `until` of a `Wait` lies in the future.

How each wait ends, by phase:

* gathering: after `initial_window` (later `stability_window`) without a change, after `max_wait` at the latest, and at
  once when `max_nodes` nodes are ready;
* stable: likewise, with `stability_window`, counted from when a ready newcomer finds a place or a member wants to
  leave; the last member that holds the state leaves only when no node is on the way that could take it over, or when
  its own agent says that its grace period presses;
* preparing: after `rescale_timeout`; the answer comes from a worker's listener thread, and no step has to end for it;
* stopping: without a deadline until the first member is at the boundary (a step or a validation may take long, and
  heartbeats watch over it), then after `rescale_timeout` for the other members;
* reforming: after `rescale_timeout`, within which every survivor has to unwind.

In stable, preparing and stopping the run also ends when workers have stopped apart for `stops.patience` seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from dtf_lightning.elastic.rules.directives import (
    Decision,
    Directive,
    DirectiveKind,
    Event,
    Form,
    NodeChanged,
    NodeGone,
    Publish,
    TimePassed,
    Wait,
)
from dtf_lightning.elastic.rules.failures import beyond_limits
from dtf_lightning.elastic.rules.generation import Member
from dtf_lightning.elastic.rules.planning import (
    deadline_of,
    describe_change,
    describe_waiting,
    joiners,
    leavers_at_stop,
    names,
    planned_world,
    relief_on_the_way,
    track,
    waiting_for,
)
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.rules.rescale import next_generation
from dtf_lightning.elastic.rules.state import (
    Departure,
    DepartureKind,
    MembershipState,
    Plan,
    RescalePhase,
    depart,
    enter,
    move,
    observe,
    suspected,
    take_over,
)
from dtf_lightning.elastic.rules.stops import patience, stopped_apart
from dtf_lightning.elastic.settings import ElasticSettings

__all__ = [
    "Decision",
    "Directive",
    "DirectiveKind",
    "Event",
    "Form",
    "MembershipState",
    "NodeChanged",
    "NodeGone",
    "NodeRecord",
    "Publish",
    "RescalePhase",
    "TimePassed",
    "Wait",
    "WorkerState",
    "decide",
    "take_over",
]

Step = tuple[MembershipState, Decision]

STOP_MARGIN = 2
"""Boundaries from the furthest answer to the stop: a worker never passes its answer + 1 before it has seen the stop."""


def decide(settings: ElasticSettings, state: MembershipState, event: Event, now: float, wall: float) -> Step:
    """Decide what the leader does after `event`.

    `now` is in monotonic seconds, `wall` in seconds since the epoch. Raises nothing.
    """
    state = observe(state, event, wall)
    apart = stopped_apart(state) if state.phase in _TOGETHER else None
    since = (now if state.apart_since is None else state.apart_since) if apart is not None else None
    state = replace(state, apart_since=since)
    if apart is not None and since is not None and now >= since + patience(settings):
        return _abort(state, apart, now)
    state, decision = _STEPS[state.phase](settings, state, now, wall)
    if isinstance(decision, Wait) and since is not None:
        look_again = since + patience(settings)
        decision = replace(decision, until=look_again if decision.until is None else min(decision.until, look_again))
    return state, decision


# --- one step for each phase -----------------------------------------------------------------------------------------


def _gathering(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step:
    if aborted := _abort_if_beyond(settings, state, now, wall):
        return aborted
    survivors = state.live
    if not all(state.is_ready(member) for member in survivors):
        state = replace(move(state, RescalePhase.REFORMING, "a survivor is not ready any more"), asked_at=now)
        return _reforming(settings, state, now, wall)
    first = state.generation.number == 0
    nobody = not survivors and not state.newcomers and _all_went_by_agreement(state)
    if nobody and not first and not settings.resume:
        return _finish(state, "last member left", now)
    world = (*survivors, *joiners(settings, state, len(survivors)))
    here = len(survivors) + len(state.newcomers)
    enough = len(world) >= settings.min_nodes
    state = track(state, world, settings.max_nodes - len(world), enough, now)
    if not enough:
        reason = (
            f"{len(world)} of {settings.min_nodes} nodes ready"
            f"{'' if first else f', paused after generation {state.generation.number}'}{waiting_for(state)}"
        )
        return state, Wait(reason=reason, paused=True)
    window = settings.initial_window if first else settings.stability_window
    deadline = deadline_of(settings, state, window)
    if len(world) >= settings.max_nodes or now >= deadline:
        return _form(settings, state, world, now, wall)
    reason = f"{len(world)} of {here} ready, waiting {deadline - now:.1f} s{waiting_for(state, ' for ', 'more nodes')}"
    return state, Wait(reason=reason, until=deadline)


def _stable(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step:
    if interrupted := _interrupted(settings, state, now, wall):
        return interrupted
    members = state.live
    num_finished = sum(state.has_finished(member) for member in members)
    planned = planned_world(settings, state)
    wanted = {member.id for member in planned} != {member.id for member in members}
    state = track(state, planned, settings.max_nodes - len(planned), wanted, now)
    counts = f"{len(members)} of {settings.max_nodes} nodes"
    if num_finished:
        return state, Wait(reason=f"{num_finished} of {len(members)} members finished, changes wait for the others")
    if not wanted and (awaited := relief_on_the_way(settings, state)):
        last = state.live[0].node
        return state, Wait(reason=f"{counts}: {last} leaves, and waits for {', '.join(awaited)} to take its state over")
    if not wanted:
        return state, Wait(
            reason=f"{counts}: {describe_waiting(state, planned) or f'generation {state.generation.number} trains'}"
        )
    change = describe_change(state, planned)
    deadline = deadline_of(settings, state, settings.stability_window)
    if now < deadline:
        return state, Wait(
            reason=f"{counts}: {change}, waiting {deadline - now:.1f} s for more changes", until=deadline
        )
    reason = f"{counts}: {change}"
    if planned and len(planned) < settings.min_nodes:
        reason += f"; the run will pause with {len(planned)} of {settings.min_nodes} nodes"
    directive = Directive(
        kind=DirectiveKind.PREPARE, target=state.generation.number + 1, epoch=state.epoch, reason=reason
    )
    return _publish(move(state, RescalePhase.PREPARING, change), directive, now)


def _preparing(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step:
    if interrupted := _interrupted(settings, state, now, wall):
        return interrupted
    target = state.generation.number + 1
    answers: list[int] = []
    silent: list[Member] = []
    for member in state.live:
        record = state.record(member)
        if record is not None and record.boundary is not None and record.boundary[0] == target:
            answers.append(record.boundary[1])
        elif not state.has_finished(member):
            silent.append(member)
    if silent:
        deadline = state.asked_at + settings.rescale_timeout
        if now >= deadline:
            why = f"did not say its boundary within {settings.rescale_timeout:g} s"
            return _fail(settings, _evict(state, silent, why, wall), now, wall)
        num = len(state.live)
        reason = f"{num - len(silent)} of {num} said their boundary, waiting for {names(silent)}"
        return state, Wait(reason=reason, until=deadline)
    boundary = max(answers, default=0) + STOP_MARGIN
    leaving = leavers_at_stop(settings, state)
    change = describe_change(state, planned_world(settings, state))
    reason = f"{len(state.live)} of {len(state.live)} stop at boundary {boundary}: {change}"
    directive = Directive(
        kind=DirectiveKind.STOP,
        target=target,
        epoch=state.epoch,
        reason=reason,
        boundary=boundary,
        leaving=tuple(member.id for member in leaving),
        leaves_nobody=len(leaving) == len(state.live),
    )
    state = replace(move(state, RescalePhase.STOPPING, f"boundary {boundary}"), first_ready_at=None)
    return _publish(state, directive, now)


def _stopping(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step:
    if finished := _finish_if_all_did(state, now):
        return finished
    if aborted := _abort_if_beyond(settings, state, now, wall):
        return aborted
    told_to_leave = state.directive.leaving if state.directive is not None else ()
    staying = [member for member in state.live if member.id not in told_to_leave]
    leavers = [member for member in state.live if member.id in told_to_leave]
    unready = [member for member in staying if not state.is_ready(member)]
    if not unready and (staying or not leavers):
        for member in leavers:  # they are on their way out, and nobody waits for their processes to end
            state = depart(state, member, DepartureKind.LEFT, "leaves at the agreed boundary", wall)
        return _form_or_gather(settings, state, staying, now, wall)
    if _is_broken(state):
        return _fail(settings, state, now, wall)
    arrived = len(unready) < len(staying) or any(member_id in state.departures for member_id in told_to_leave)
    unfinished = [member for member in unready if not state.has_finished(member)]
    if arrived and unready and not unfinished:
        # Some members came to the end of training, the others to the boundary: only unwinding brings them together
        # again.
        return _fail(settings, state, now, wall)
    if arrived and state.first_ready_at is None:
        state = replace(state, first_ready_at=now)
    missing = unfinished or leavers
    reason = f"{len(state.live) - len(missing)} of {len(state.live)} at the boundary, waiting for {names(missing)}"
    if state.first_ready_at is None or not unfinished:
        return state, Wait(reason=reason)
    deadline = state.first_ready_at + settings.rescale_timeout
    if now >= deadline:
        why = f"did not come to the boundary within {settings.rescale_timeout:g} s of the first"
        return _fail(settings, _evict(state, unfinished, why, wall), now, wall)
    return state, Wait(reason=reason, until=deadline)


def _reforming(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step:
    if aborted := _abort_if_beyond(settings, state, now, wall):
        return aborted
    survivors = state.live
    unready = [member for member in survivors if not state.is_ready(member)]
    if not unready:
        return _form_or_gather(settings, state, survivors, now, wall, let_in=False)
    deadline = state.asked_at + settings.rescale_timeout
    if now >= deadline:
        why = f"did not unwind within {settings.rescale_timeout:g} s"
        return _fail(settings, _evict(state, unready, why, wall), now, wall)
    num = len(survivors)
    reason = f"{num - len(unready)} of {num} survivors unwound, waiting for {names(unready)}"
    return state, Wait(reason=reason, until=deadline)


def _over(_settings: ElasticSettings, state: MembershipState, _now: float, _wall: float) -> Step:
    reason = state.directive.reason if state.directive is not None else ""
    return state, Wait(reason=f"{state.phase.value}: {reason}")


_TOGETHER = (RescalePhase.STABLE, RescalePhase.PREPARING, RescalePhase.STOPPING)
"""In these phases the members of a generation train, or are about to stop together."""

_STEPS: Mapping[RescalePhase, Callable[[ElasticSettings, MembershipState, float, float], Step]] = {
    RescalePhase.GATHERING: _gathering,
    RescalePhase.STABLE: _stable,
    RescalePhase.PREPARING: _preparing,
    RescalePhase.STOPPING: _stopping,
    RescalePhase.REFORMING: _reforming,
    RescalePhase.FINISHED: _over,
    RescalePhase.ABORTED: _over,
}


# --- what may end a running generation -------------------------------------------------------------------------------


def _interrupted(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step | None:
    if finished := _finish_if_all_did(state, now):
        return finished
    if _is_broken(state):
        return _fail(settings, state, now, wall)
    return _abort_if_beyond(settings, state, now, wall)


def _finish_if_all_did(state: MembershipState, now: float) -> Step | None:
    """Finish the run if every member finished, died after it, or left at the stop that the end of training overtook."""
    leaving = state.directive.leaving if state.phase is RescalePhase.STOPPING and state.directive is not None else ()
    num_finished = 0
    for member in state.generation.members:
        departure = state.departures.get(member.id)
        finished = state.has_finished(member) if departure is None else departure.kind is DepartureKind.FINISHED
        if not finished and (departure is None or member.id not in leaving):
            return None
        num_finished += finished
    if num_finished == 0:
        return None
    return _finish(state, f"{num_finished} of {num_finished} members finished", now)


def _is_broken(state: MembershipState) -> bool:
    """Tell whether a member died whose peers may be stuck, or a live member reports the generation as broken."""
    stop = state.directive if state.phase is RescalePhase.STOPPING else None
    for departure in state.departures.values():
        if departure.kind is DepartureKind.FINISHED:
            continue
        if stop is not None and departure.member.id in stop.leaving and _was_at_boundary(state, departure):
            continue
        return True
    return bool(_reporters(state))


def _was_at_boundary(state: MembershipState, departure: Departure) -> bool:
    """Tell whether a leaver came to the stop: it said so, or its key vanished after another member had come there."""
    if departure.kind is DepartureKind.LEFT:
        return True
    others_were = any(d.kind is DepartureKind.LEFT for d in state.departures.values()) or any(
        state.is_ready(member) for member in state.live
    )
    return departure.kind is DepartureKind.DRAINED and others_were


def _reporters(state: MembershipState) -> list[NodeRecord]:
    """Return the records of the live members that report the running generation as broken."""
    records = [state.record(member) for member in state.live]
    return [r for r in records if r is not None and r.suspect > 0 and r.suspect == state.generation.number]


def _all_went_by_agreement(state: MembershipState) -> bool:
    return all(departure.kind is not DepartureKind.FAILED for departure in state.departures.values())


# --- acting ----------------------------------------------------------------------------------------------------------


def _publish(state: MembershipState, directive: Directive, now: float) -> Step:
    return replace(state, directive=directive, asked_at=now), Publish(directive=directive, reason=directive.reason)


def _finish(state: MembershipState, reason: str, now: float) -> Step:
    directive = Directive(
        kind=DirectiveKind.FINISH, target=state.generation.number + 1, epoch=state.epoch, reason=reason
    )
    return _publish(move(state, RescalePhase.FINISHED, reason), directive, now)


def _abort_if_beyond(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step | None:
    why = beyond_limits(settings, state.generation, state.failures, wall)
    return _abort(state, why, now) if why is not None else None


def _abort(state: MembershipState, why: str, now: float) -> Step:
    directive = Directive(
        kind=DirectiveKind.ABORT,
        target=state.generation.number + 1,
        epoch=state.epoch,
        reason=f"the run was aborted: {why}",
    )
    return _publish(move(state, RescalePhase.ABORTED, why.split(":\n", maxsplit=1)[0]), directive, now)


def _evict(state: MembershipState, members: Sequence[Member], why: str, wall: float) -> MembershipState:
    for member in members:
        state = depart(state, member, DepartureKind.FAILED, why, wall)
    return state


def _fail(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> Step:
    """Declare the generation broken: all members have to unwind."""
    reporters = [] if state.departures else _reporters(state)
    for record in reporters:
        state = suspected(state, [record.member_id], record.detail or "reported the generation as broken", wall)
    if aborted := _abort_if_beyond(settings, state, now, wall):
        return aborted
    departures = state.departures.values()
    failed = tuple(d.member.id for d in departures if d.kind is DepartureKind.FAILED)
    departed = tuple(d.member.id for d in departures if d.kind is not DepartureKind.FAILED)
    if departures:
        what = ", ".join(f"{d.member.id} {_HOW[d.kind]} ({d.reason})" for d in departures)
    elif reporters:
        names = ", ".join(record.member_id for record in reporters)
        what = f"{names} reported generation {state.generation.number} as broken"
    else:
        what = "some members finished before the boundary at which the others stopped"
    reason = f"{what}: {len(state.live)} of {len(state.generation.members)} members go on"
    directive = Directive(
        kind=DirectiveKind.FAIL,
        target=state.generation.number + 1,
        epoch=state.epoch,
        reason=reason,
        failed=failed,
        departed=departed,
        suspects=tuple(record.member_id for record in reporters),
    )
    return _publish(move(state, RescalePhase.REFORMING, what), directive, now)


_HOW = {
    DepartureKind.FAILED: "failed",
    DepartureKind.LEFT: "left",
    DepartureKind.DRAINED: "died while leaving",
    DepartureKind.FINISHED: "died after having finished",
}


def _form_or_gather(
    settings: ElasticSettings,
    state: MembershipState,
    survivors: Sequence[Member],
    now: float,
    wall: float,
    *,
    let_in: bool = True,
) -> Step:
    """Form the next world out of the survivors, all of whom are unwound, or gather if they are too few for one."""
    world = (*survivors, *(joiners(settings, state, len(survivors)) if let_in else ()))
    if len(world) >= settings.min_nodes and survivors:
        return _form(settings, state, world, now, wall)
    why = f"{len(survivors)} of {settings.min_nodes} nodes are left"
    state = replace(move(state, RescalePhase.GATHERING, why), plan=Plan(changed_at=now))
    return _gathering(settings, state, now, wall)


def _form(settings: ElasticSettings, state: MembershipState, world: Sequence[Member], now: float, wall: float) -> Step:
    generation = next_generation(settings, state, world, wall)
    reason = f"generation {generation.number}: {generation.reason}"
    return enter(move(state, RescalePhase.STABLE, reason), generation, now), Form(generation=generation, reason=reason)
