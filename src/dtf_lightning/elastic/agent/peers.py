"""`Peers` decides which nodes are gone, by what etcd's keys and the mesh say together.

Rules that this file guards:

* a key that vanished is no death by itself: etcd may have been away, and every lease with it. While the node's agent
  answers on the mesh it is `away`, and registers again by itself;
* a node that said it had ended, or whose process is proven dead, is gone with its key;
* silence counts only while this agent listens: after a time in which it got no processor itself, answers lie unread;
* a dead agent's keys are deleted by whoever noticed (evicted), its leader key too, rather than left to the lease.

No I/O but the mesh's non-blocking calls; used by the loop's thread only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.mesh import Mesh
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.etcd.session import Write
from dtf_lightning.etcd.store import Compare, Delete

PROBE_TIMEOUT = 2.0
"""Seconds that the agent of an unlisted node has for an answer on the mesh."""
PROBE_INTERVAL = 0.7
"""Seconds between two probes; several fit into the timeout."""
STOOD_STILL = 2 * PROBE_INTERVAL
"""Seconds between two looks at nodes that are away, after which this agent has stood still: it looks when a probe is due."""
EVICT_PAUSE = 0.5
"""Seconds before an eviction is tried again."""


@dataclass
class _Away:
    record: NodeRecord
    until: float
    """The time (monotonic seconds) at which it is gone without an answer."""
    probe_at: float


@dataclass
class Peers:
    """The other nodes of the run, as this agent sees them."""

    node: str
    keys: RunKeys
    mesh: Mesh | None
    clock: Clock
    gone: dict[str, str] = field(default_factory=dict)
    """The nodes that are out, and the reasons."""
    _away: dict[str, _Away] = field(default_factory=dict)
    _dead: dict[str, str] = field(default_factory=dict)
    _evict_at: dict[str, float] = field(default_factory=dict)
    _looked_at: float = 0.0
    """The time (monotonic seconds) of the last look for nodes that have not answered."""

    @property
    def mesh_port(self) -> int:
        """The port at which this node's mesh listens; 0 without a mesh."""
        return self.mesh.port if self.mesh is not None else 0

    @property
    def away(self) -> dict[str, NodeRecord]:
        """The nodes that are unlisted, but may be alive, with their last records."""
        return {node: away.record for node, away in self._away.items()}

    @property
    def deadline(self) -> Deadline:
        """The time at which `overdue` must be called next."""
        probes = [min(away.until, away.probe_at) for away in self._away.values()]
        return Deadline(*probes, *self._evict_at.values())

    def listed(self, record: NodeRecord) -> None:
        """Take in that a node's key is there, or there again."""
        self._away.pop(record.node, None)
        if record.node in self._dead:
            self._evict_at.pop(record.node, None)  # its last words came late: an eviction was refused for them
        else:
            self.gone.pop(record.node, None)

    def unlisted(self, record: NodeRecord) -> str | None:
        """Take in that a node's key is gone; return why the node is gone with it, or `None` while that is not sure."""
        node = record.node
        self._evict_at.pop(node, None)
        if record.state in ENDED:
            cause = record.detail or record.state.value
        elif node in self._dead:
            cause = self._dead[node]
        elif self.mesh is None:
            cause = "its lease is gone"
        else:
            now = self.clock.monotonic()
            if not self._away:
                self._looked_at = now
            self._away[node] = _Away(record, until=now + PROBE_TIMEOUT, probe_at=now + PROBE_INTERVAL)
            self.mesh.probe(node)
            return None
        self.gone[node] = cause
        return cause

    def died(self, node: str, cause: str) -> str | None:
        """Take in the mesh's proof of a node's death; return the cause if that settles an open question."""
        self._dead[node] = self.gone[node] = cause
        return cause if self._away.pop(node, None) is not None else None

    def answered(self, node: str) -> None:
        """Take in a sign of life from a node that is away."""
        if node in self._away:
            self._away[node].until = self.clock.monotonic() + PROBE_TIMEOUT

    def overdue(self) -> list[tuple[str, str]]:
        """Return the nodes that have not answered in time, which are gone now, with the cause. Probes the others again."""
        now = self.clock.monotonic()
        if now - self._looked_at > STOOD_STILL:
            for away in self._away.values():
                away.until, away.probe_at = max(away.until, now + PROBE_TIMEOUT), now
        self._looked_at = now
        late = [node for node, away in self._away.items() if away.until <= now]
        for node in late:
            del self._away[node]
            self.gone[node] = "its lease is gone and its agent does not answer on the mesh"
        for node, away in self._away.items():
            if self.mesh is not None and away.probe_at <= now:
                away.probe_at = now + PROBE_INTERVAL
                self.mesh.probe(node)
        return [(node, self.gone[node]) for node in late]

    def evictions(self, view: RunView) -> Iterator[Write]:
        """Yield the transactions that take the keys of dead nodes away."""
        now = self.clock.monotonic()
        leader = view.leader
        for node in self._dead:
            leads = leader is not None and leader.node == node
            if node not in view.nodes and not leads:
                self._evict_at.pop(node, None)
            elif self._evict_at.get(node, now) <= now:
                self._evict_at[node] = now + EVICT_PAUSE
                key = self.keys.node(node)
                compares = [Compare(key, "mod", "=", view.mod_revision(key))]
                deletes = [Delete(key)]
                if leads and leader is not None:
                    compares.append(Compare(self.keys.leader, "create", "=", leader.epoch))
                    deletes.append(Delete(self.keys.leader))
                yield Write(label=f"evict {node}", compares=tuple(compares), puts=tuple(deletes))

    def follow(self, view: RunView) -> None:
        """Keep links to all nodes that are listed or away."""
        if self.mesh is not None:
            records = {**self.away, **view.nodes}
            self.mesh.watch(
                {r.node: (r.host, r.mesh_port) for r in records.values() if r.node != self.node and r.mesh_port}
            )
