"""Where a run's keys lie in etcd, and this process's copy of them.

All state of a run is level-triggered: records that are rewritten as a whole, never messages. Whoever holds a copy of the
prefix can take over as leader from it alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar, cast
from urllib.parse import quote, unquote

from dtf_lightning.elastic.rules.directives import Directive
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.errors import ProtocolError
from dtf_lightning.etcd.store import EventKind, KeyValue, RangeResult, WatchEvent

log = logging.getLogger(__name__)

ROOT = "/dtf/runs/"
LIVE, RESTART = "live", "restart"
"""The two modes of a run."""

T = TypeVar("T")


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run. A run id may hold any character; it is quoted."""

    run_id: str

    @property
    def prefix(self) -> str:
        return f"{ROOT}{quote(self.run_id, safe='')}/"

    @property
    def run(self) -> str:
        return self.prefix + "run"

    @property
    def leader(self) -> str:
        return self.prefix + "leader"

    @property
    def generation(self) -> str:
        return self.prefix + "generation"

    @property
    def directive(self) -> str:
        return self.prefix + "directive"

    @property
    def fingerprint(self) -> str:
        return self.prefix + "fingerprint"

    @property
    def rank_zero(self) -> str:
        return self.prefix + "rank_zero"

    @property
    def status(self) -> str:
        return self.prefix + "status"

    def node(self, node: str) -> str:
        return f"{self.prefix}nodes/{node}"

    def events(self, node: str) -> str:
        return f"{self.prefix}events/{node}"

    def drain(self, node: str) -> str:
        return f"{self.prefix}drain/{node}"


def run_id_of(key: str) -> str:
    """The run that a key under `ROOT` belongs to."""
    return unquote(key.removeprefix(ROOT).split("/", 1)[0])


class RunPhase(Enum):
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The `run` key: which use of the run id this is, and whether it is over."""

    instance: str
    phase: RunPhase = RunPhase.RUNNING
    reason: str = ""
    started_at: float = 0.0
    """Seconds since the epoch."""
    min_nodes: int = 1
    max_nodes: int = 1
    mode: str = LIVE
    """`LIVE` or `RESTART`: the two do not mix."""
    script: str = ""
    """Restart mode: the training script's name; empty when it is not known."""
    untrained: bool = False
    """Live mode: no leader has heard of an optimizer step yet. It outlives the members, whose own records go with them."""

    def ended(self, phase: RunPhase, reason: str) -> RunInfo:
        """The record of the same run, over."""
        return replace(self, phase=phase, reason=reason)

    def encode(self) -> bytes:
        return encode({**asdict(self), "phase": self.phase.value})

    @classmethod
    def decode(cls, value: bytes) -> RunInfo:
        data = json.loads(value)
        return cls(**{**data, "phase": RunPhase(data["phase"])})


@dataclass(frozen=True, kw_only=True)
class RunStatusNote:
    """The `status` key: what the leader waits for, in its own words."""

    leader: str
    reason: str
    paused: bool = False
    at: float = 0.0
    """Seconds since the epoch."""

    def encode(self) -> bytes:
        return encode(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What every node of a run must have in common."""

    settings: dict[str, str] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    def encode(self) -> bytes:
        return encode({"settings": self.settings, "parameters": list(self.parameters)})

    @classmethod
    def decode(cls, value: bytes) -> Fingerprint:
        data = json.loads(value)
        return cls(settings=data["settings"], parameters=tuple(data["parameters"]))

    def first_difference(self, other: Fingerprint) -> str | None:
        """What differs first, as "name: theirs here, ours there"; `None` when nothing does."""
        for name in sorted(self.settings.keys() | other.settings.keys()):
            theirs, ours = self.settings.get(name, "nothing"), other.settings.get(name, "nothing")
            if theirs != ours:
                return f"setting {name!r} is {theirs!r} in the run and {ours!r} on this node"
        for index, (theirs, ours) in enumerate(zip(self.parameters, other.parameters, strict=False)):
            if theirs != ours:
                return f"parameter {index} is {theirs!r} in the run and {ours!r} on this node"
        if len(self.parameters) != len(other.parameters):
            longer = max(self.parameters, other.parameters, key=len)
            first = longer[min(len(self.parameters), len(other.parameters))]
            return (
                f"the model has {len(self.parameters)} parameters and buffers in the run and "
                f"{len(other.parameters)} on this node (the first that the other lacks: {first!r})"
            )
        return None


def encode(value: Any) -> bytes:
    """A key's value: compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(frozen=True)
class LeaderClaim:
    node: str
    epoch: int
    """The key's create revision: the fencing token."""


@dataclass(frozen=True)
class NodeDeleted:
    """A node's key went, with its last record."""

    record: NodeRecord


class RunView:
    """A copy of a run's prefix, kept by snapshots and watch events. Not thread-safe: its owner's thread only."""

    def __init__(self, keys: RunKeys) -> None:
        self.keys = keys
        self.revision = 0
        self._kvs: dict[str, KeyValue] = {}
        self._values: dict[str, tuple[int, object]] = {}
        self.nodes: dict[str, NodeRecord] = {}
        self.saw_trained: set[str] = set()
        """The instances of the run of which a node has said, as long as this view exists, that it had trained in them."""

    def reset(self, snapshot: RangeResult) -> list[NodeRecord | NodeDeleted]:
        """Take over a fresh reading of the prefix; what changed among the nodes since the last one."""
        new = {kv.key: kv for kv in snapshot.kvs}
        changes: list[NodeRecord | NodeDeleted] = []
        for key in [key for key in self._kvs if key not in new]:
            changes += self._forget(key)
        for kv in new.values():
            changes += self._learn(kv)
        self.revision = snapshot.revision
        return changes

    def apply(self, events: Iterable[WatchEvent]) -> list[NodeRecord | NodeDeleted]:
        """Follow watch events; the changes among the nodes, in order."""
        changes: list[NodeRecord | NodeDeleted] = []
        for event in events:
            changes += self._learn(event.kv) if event.kind is EventKind.PUT else self._forget(event.kv.key)
            self.revision = max(self.revision, event.kv.mod_revision)
        return changes

    @property
    def empty(self) -> bool:
        """No key of the run is there."""
        return not self._kvs

    def lease(self, key: str) -> int:
        """The lease under which the key lies; 0 for none."""
        kv = self._kvs.get(key)
        return kv.lease if kv else 0

    def mod_revision(self, key: str) -> int:
        """0 for an absent key, as etcd's compares have it."""
        kv = self._kvs.get(key)
        return kv.mod_revision if kv else 0

    @property
    def leader(self) -> LeaderClaim | None:
        return self._parsed(self.keys.leader, lambda kv: LeaderClaim(json.loads(kv.value)["node"], kv.create_revision))

    @property
    def run(self) -> RunInfo | None:
        return self._parsed(self.keys.run, lambda kv: RunInfo.decode(kv.value))

    @property
    def generation(self) -> Generation | None:
        return self._parsed(self.keys.generation, lambda kv: Generation.from_json(json.loads(kv.value)))

    @property
    def rank_zero(self) -> str:
        """The member id of the node that does what rank zero does in set-up; empty while none has claimed it."""
        return self._parsed(self.keys.rank_zero, lambda kv: str(json.loads(kv.value)["member"])) or ""

    @property
    def any_stopped(self) -> bool:
        """A worker of the current generation has left the training loop."""
        generation = self.generation
        return generation is not None and any(
            record.stopped is not None and record.stopped[0] == generation.number for record in self.nodes.values()
        )

    @property
    def directive(self) -> Directive | None:
        return self._parsed(self.keys.directive, lambda kv: Directive.from_json(json.loads(kv.value)))

    @property
    def fingerprint(self) -> Fingerprint | None:
        return self._parsed(self.keys.fingerprint, lambda kv: Fingerprint.decode(kv.value))

    @property
    def status(self) -> RunStatusNote | None:
        return self._parsed(self.keys.status, lambda kv: RunStatusNote(**json.loads(kv.value)))

    def happenings(self) -> list[tuple[float, str]]:
        """(seconds since the epoch, text) of the nodes' last important events, oldest first."""
        found: list[tuple[float, str]] = []
        for key, kv in self._kvs.items():
            if key.startswith(self.keys.events("")):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # another version's
                    found += [(float(event["at"]), str(event["text"])) for event in json.loads(kv.value)]
        return sorted(found)

    def participants(self, *, other_than: str) -> list[str]:
        """The nodes beside this one that take part in the run. In live mode a node is one before it is admitted."""
        run = self.run
        return sorted(
            record.node
            for record in self.nodes.values()
            if record.node != other_than and run is not None and (run.mode == LIVE or record.instance == run.instance)
        )

    def at_the_rest(self) -> list[str]:
        """The nodes of a run that has finished whose scripts have not ended; empty while it has not."""
        run = self.run
        if run is None or run.phase is not RunPhase.FINISHED:
            return []
        return sorted(record.node for record in self.nodes.values() if record.instance == run.instance)

    @property
    def has_members(self) -> bool:
        """Whether a member of the current generation is listed."""
        generation = self.generation
        return generation is not None and any(member.node in self.nodes for member in generation.members)

    def drain_asked(self, node: str) -> bool:
        return self.keys.drain(node) in self._kvs

    def _parsed(self, key: str, parse: Callable[[KeyValue], T]) -> T | None:
        """The key's value, parsed once per version: the loop looks at all of them after every event."""
        kv = self._kvs.get(key)
        if kv is None:
            return None
        revision, value = self._values.get(key, (0, None))
        if revision != kv.mod_revision:
            value = parse(kv)
            self._values[key] = (kv.mod_revision, value)
        return cast("T", value)

    def _learn(self, kv: KeyValue) -> list[NodeRecord | NodeDeleted]:
        known = self._kvs.get(kv.key)
        if known is not None and known.mod_revision >= kv.mod_revision:
            return []
        self._kvs[kv.key] = kv
        if not kv.key.startswith(self.keys.node("")):
            return []
        try:
            record = NodeRecord.from_json(json.loads(kv.value), order=kv.create_revision)
        except (ProtocolError, ValueError) as error:
            # Another version's node must not bring this one down; it is as if it were not there.
            log.error("ignoring the record at %s: %s", kv.key, error)
            return []
        self.nodes[record.node] = record
        if record.trained:
            self.saw_trained.add(record.instance)
        return [record]

    def _forget(self, key: str) -> list[NodeRecord | NodeDeleted]:
        self._kvs.pop(key, None)
        record = self.nodes.pop(key.removeprefix(self.keys.node("")), None)
        return [NodeDeleted(record)] if record is not None else []
