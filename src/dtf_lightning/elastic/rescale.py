"""From the old world to the new: who stays, who comes, who goes, and the words for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dtf_lightning.elastic.generation import Generation, Member


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """The difference between a generation and the members of the next."""

    old: Generation
    members: tuple[Member, ...]
    """Of the new world, in rank order."""
    survivors: tuple[Member, ...]
    """In both, in rank order."""
    joined: tuple[Member, ...]
    left: tuple[Member, ...]
    """Gone without being a failure."""
    failed: tuple[Member, ...]
    broken: bool
    """The old generation was reported as broken, or one of its members died: this rescale is unplanned."""

    @property
    def kind(self) -> str:
        """`start`, `join`, `leave`, `failure` or `mixed`."""
        if self.old.number == 0:
            return "start"
        kinds = [
            word
            for word, happened in (
                ("join", bool(self.joined)),
                ("leave", bool(self.left)),
                ("failure", bool(self.failed) or (self.broken and not self.left)),
            )
            if happened
        ]
        if len(kinds) == 1:
            return kinds[0]
        return "mixed"

    @property
    def text(self) -> str:
        """What changed, for people, with the counts."""
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
            text += f"; no survivor of generation {self.old.number}, the state restarts from what the newcomers loaded"
        return text


def compare(
    old: Generation, members: Sequence[Member], *, failed: Collection[str] = (), broken: bool = False
) -> Rescale:
    """The way from `old` to a world of `members`. `failed` are ids of old members that count as failures."""
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
    )


def _names(members: Sequence[Member]) -> str:
    return ", ".join(member.id for member in members)
