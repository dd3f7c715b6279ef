"""`RoundRecords` is what the nodes' records say of the latest round, those of nodes that are away or gone included."""

from __future__ import annotations

from dataclasses import dataclass, field

from dtf_lightning.elastic.agent.peers import Peers
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.rules.rounds import RoundView
from dtf_lightning.elastic.run.keys import RunView


@dataclass
class RoundRecords:
    """The records of all nodes of a run. Used under the agent's lock."""

    view: RunView
    peers: Peers
    node: str
    _last_words: dict[str, NodeRecord] = field(default_factory=dict)

    def note(self, record: NodeRecord) -> None:
        """Keep a node's record, beyond the life of its key."""
        self._last_words[record.node] = record

    @property
    def current(self) -> Generation:
        """The latest round; its number is 0 before the first."""
        return self.view.generation or Generation(number=0)

    def num_workers(self, generation: Generation) -> dict[str, int]:
        """Return the number of workers by node, of those members that have told it for this round."""
        members = {member.node for member in generation.members}
        records = (*self.view.nodes.values(), *self.peers.away.values())
        return {r.node: r.num_workers for r in records if r.node in members and r.generation >= generation.number}

    def round_view(self) -> RoundView:
        """Return what the rules of rounds (`elastic.rules.rounds`) take."""
        current, gone, last = self.current, self.peers.gone, self._last_words
        known = {**self.peers.away, **self.view.nodes}
        living = {node: record for node, record in known.items() if node not in gone}
        absent = [member.node for member in current.members if member.node not in living]
        completed = {node for node in absent if node in last and last[node].finished == current.number}
        left = {node for node in absent if node in last and last[node].leaving}
        return RoundView(
            current=current,
            records=tuple(living.values()),
            failed={n: gone.get(n, "its record is gone") for n in absent if n not in completed | left},
            completed=frozenset(completed),
        )
