"""A node's session with etcd: its record under a lease, and one watch on all keys of its run."""

from __future__ import annotations

from dtf_lightning.elastic.agent.inbox import Push
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunKeys, encode
from dtf_lightning.etcd.session import Session
from dtf_lightning.etcd.store import Store


class NodeSession(Session):
    """A node's presence in a run: its record and its lease in etcd, and a watch on the run's keys."""

    def __init__(self, store: Store, keys: RunKeys, *, node: str, lease_ttl: float, push: Push) -> None:
        super().__init__(
            store,
            keys.prefix,
            name=node,
            lease_ttl=lease_ttl,
            push=push,
            while_away="training goes on, the next rescale waits for etcd",
        )
        self._key = keys.node(node)

    def write_record(self, record: NodeRecord) -> None:
        """Write this record in the place of every earlier one of the node that has not gone out yet."""
        self.keep(self._key, encode(record.to_json()))
