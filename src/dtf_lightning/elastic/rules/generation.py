"""A generation is an agreed world: a number, and the members in the order of their ranks.

Rules that this file guards:

* one generation per number, numbers start at 1 and grow by one;
* ranks are dense (0 .. world_size - 1) and stable: survivors keep their order, joiners come behind them;
* a member id names one incarnation of a node's workers and is never used again;
* nobody acts on a generation whose fencing epoch is older than one already seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dtf_lightning.errors import ProtocolError


@dataclass(frozen=True, kw_only=True)
class Member:
    """One node's group of workers, all of which enter and leave a generation together."""

    node: str
    """The agent's id, unique for every start of an agent."""
    incarnation: int
    """The number of this start of the node's workers; starts at 1."""
    num_workers: int
    host: str = ""

    @property
    def id(self) -> str:
        """The member's id, `node#incarnation`; never used again after the incarnation has ended."""
        return f"{self.node}#{self.incarnation}"


def split_id(member_id: str) -> tuple[str, int]:
    """Split a member id into (node, incarnation). Raises `ValueError` for anything else."""
    node, _, incarnation = member_id.rpartition("#")
    return node, int(incarnation)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A member that died without having left, or that reported its generation as broken."""

    member: str
    generation: int
    num_workers: int
    """Workers that died; 0 if the member lives on and has only reported a broken generation."""
    at: float
    """When the leader noticed it, in seconds since the epoch."""
    reason: str
    counts: bool = True
    """Whether the workers count for `failure_tolerance`; not where another failure of the same generation has ended them."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """An agreed world; the generation with `number` 0 is the empty world before the first."""

    number: int
    members: tuple[Member, ...] = ()
    """The members in rank order: the workers of members[0] have ranks 0 .. n-1, and so on."""
    reason: str = ""
    kind: str = ""
    """Why the generation was formed: the word of a `ChangeKind`."""
    trained: bool = False
    """Optimizer steps of the run were made before this generation: members that hold no state must not begin at 0."""
    presumed: bool = False
    """That is assumed, because nobody is left who could tell, and no leader had heard of a step: where nothing is saved either,
    the members begin."""
    epoch: int = 0
    """The leader's fencing token: the create revision of the leader key."""
    instance: str = ""
    """The id of the run's instance: a run id that is used again gets a new instance."""
    store_host: str = ""
    store_port: int = 0
    """The port at which the agent that hosts this generation's TCPStore listens, on `store_host`."""
    formed_at: float = 0.0
    """When the leader formed the generation, in seconds since the epoch."""
    failures: tuple[Failure, ...] = field(default=())
    """Recent failures, oldest first, so that a new leader counts on from here."""
    num_consecutive_failures: int = 0
    """The number of unplanned rescales in a row that led here, none of whose worlds lived for `failure_window`."""
    unbroken_since: float = 0.0
    """When the start or the last unplanned rescale formed a world; planned ones pass it on. Seconds since the epoch."""
    retired: tuple[str, ...] = ()
    """Ids of earlier members that are out for good: the latest of each node, latest last, a few hundred at most. A
    node that finds its own id here (it was cut off when it was put out) ends its workers and starts them anew."""
    recent_worlds: tuple[tuple[float, int], ...] = ()
    """(end in seconds since the epoch, world size) of the earlier generations that `failure_window` still reaches."""

    @property
    def world_size(self) -> int:
        return sum(member.num_workers for member in self.members)

    def first_rank(self, member_id: str) -> int:
        """Return the rank of the member's local rank 0. Raises `KeyError` for an id that is not a member's."""
        rank = 0
        for member in self.members:
            if member.id == member_id:
                return rank
            rank += member.num_workers
        raise KeyError(member_id)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Generation:
        """Return the generation that `to_json` wrote. Raises `ProtocolError` for anything else."""
        try:
            fields = dict(data)
            fields["members"] = tuple(Member(**m) for m in fields.get("members", ()))
            fields["failures"] = tuple(Failure(**f) for f in fields.get("failures", ()))
            fields["retired"] = tuple(fields.get("retired", ()))
            for member_id in fields["retired"]:
                split_id(member_id)
            fields["recent_worlds"] = tuple((float(at), int(size)) for at, size in fields.get("recent_worlds", ()))
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise ProtocolError(
                f"expected a generation, got {data!r} ({error}); do all nodes run the same dtf-lightning?"
            ) from error
