"""The difference between two worlds (which members stay, join, leave or fail) and the generation that follows it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dtf_lightning.elastic.rules.change import kind_of_change
from dtf_lightning.elastic.rules.failures import num_consecutive, still_count
from dtf_lightning.elastic.rules.generation import Generation, Member, split_id
from dtf_lightning.elastic.rules.state import DepartureKind, MembershipState, RescalePhase
from dtf_lightning.elastic.settings import ElasticSettings

MAX_RETIRED = 256
"""The most ids of former members that a generation carries; a member put out longer ago does not come back."""


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """The difference between a generation and the members of the next."""

    old: Generation
    members: tuple[Member, ...]
    """The members of the new world, in rank order."""
    survivors: tuple[Member, ...]
    """The members of both worlds, in rank order."""
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    """The members that are gone without having failed."""
    failed: tuple[Member, ...]
    broken: bool
    """The old generation was reported as broken, or one of its members died: this rescale is unplanned."""
    trained: bool = False
    """Optimizer steps of the run have been made."""
    fresh: bool = False
    """Where nobody is left who has made them, the run begins anew."""

    @property
    def goes_on(self) -> bool:
        """Whether the members must continue from steps that were made, rather than begin the run."""
        return self.trained and (bool(self.survivors) or not self.fresh)

    @property
    def kind(self) -> str:
        """Why the world changes: the word of a `ChangeKind`."""
        failed = bool(self.failed) or (self.broken and not self.left)
        change = kind_of_change(
            first=self.old.number == 0, joined=bool(self.joined), left=bool(self.left), failed=failed
        )
        return change.value

    @property
    def text(self) -> str:
        """What changes, with the counts, for people."""
        changes = [
            f"{_names(members)} {word}"
            for word, members in (("joined", self.joined), ("left", self.left), ("failed", self.failed))
            if members
        ]
        if not changes:
            changes = ["reported as broken, same members" if self.broken else "same members"]
        world_size = sum(member.num_workers for member in self.members)
        text = f"{', '.join(changes)}: {len(self.old.members)} -> {len(self.members)} nodes, {world_size} workers"
        if self.old.number > 0 and not self.survivors:
            text += f"; no survivor of generation {self.old.number}: {_CONTINUATIONS[self.trained, self.fresh]}"
        return text


_CONTINUATIONS = {
    (False, False): "it had made no step, the newcomers begin",
    (False, True): "it had made no step, the newcomers begin",
    (True, False): "the newcomers go on from the newest snapshot or checkpoint of this run",
    (True, True): "the newcomers begin anew, because of fresh=true",
}
"""How a world without survivors goes on, by (steps were made, `fresh`)."""


def compare(
    old: Generation,
    members: Sequence[Member],
    *,
    failed: Collection[str] = (),
    broken: bool = False,
    trained: bool = False,
    fresh: bool = False,
) -> Rescale:
    """Compare `old` with a world of `members`. `failed` holds the ids of the old members that count as failures."""
    new_ids = {member.id for member in members}
    old_ids = {member.id for member in old.members}
    gone = [member for member in old.members if member.id not in new_ids]
    return Rescale(
        old=old,
        members=tuple(members),
        survivors=tuple(member for member in members if member.id in old_ids),
        joined=tuple(member for member in members if member.id not in old_ids),
        left=tuple(member for member in gone if member.id not in failed),
        failed=tuple(member for member in gone if member.id in failed),
        broken=broken,
        trained=trained,
        fresh=fresh,
    )


def next_generation(
    settings: ElasticSettings, state: MembershipState, world: Sequence[Member], wall: float
) -> Generation:
    """Return the generation after the state's own: the members of `world`, in this order. They all have a record."""
    old = state.generation
    failed = [d.member.id for d in state.departures.values() if d.kind is DepartureKind.FAILED]
    broken = any(failure.generation == old.number for failure in state.failures)
    broken_off = broken or state.phase is RescalePhase.REFORMING
    change = compare(old, world, failed=failed, broken=broken_off, trained=state.trained, fresh=settings.fresh)
    host = state.nodes[world[0].node]
    worlds = [(end, size) for end, size in old.recent_worlds if end > wall - settings.failure_window]
    if old.number > 0:
        worlds.append((wall, old.world_size))
    return Generation(
        number=old.number + 1,
        members=tuple(state.nodes[member.node].member() for member in world),
        reason=change.text,
        kind=change.kind,
        trained=change.goes_on,
        presumed=change.goes_on and state.presumed,
        epoch=state.epoch,
        instance=state.instance,
        store_host=host.host,
        store_port=host.store_port,
        formed_at=wall,
        failures=still_count(settings, old, state.failures, wall),
        num_consecutive_failures=num_consecutive(settings, old, state.failures, wall),
        unbroken_since=wall if broken or old.number == 0 else old.unbroken_since,
        retired=_remember(old.retired, (*change.left, *change.failed)),
        recent_worlds=tuple(worlds),
    )


def _remember(retired: Sequence[str], gone: Sequence[Member]) -> tuple[str, ...]:
    """Return the ids of the members that stay out for good, one for each node, the latest last."""
    nodes = {member.node for member in gone}
    earlier = [member_id for member_id in retired if split_id(member_id)[0] not in nodes]
    return (*earlier, *(member.id for member in gone))[-MAX_RETIRED:]


def _names(members: Sequence[Member]) -> str:
    return ", ".join(member.id for member in members)
