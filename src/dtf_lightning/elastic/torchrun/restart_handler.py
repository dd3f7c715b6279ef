"""`RestartRendezvousHandler` is our rendezvous handler for restart mode: any stock script, all agents in one group."""

from __future__ import annotations

from contextlib import ExitStack

import torch.distributed as dist
from torch.distributed.elastic.rendezvous.api import RendezvousInfo, RendezvousParameters, RendezvousStoreInfo

from dtf_lightning.elastic.agent.restart.agent import RestartAgent
from dtf_lightning.elastic.agent.restart.spares import Spares
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.elastic.torchrun.rendezvous import RendezvousBase
from dtf_lightning.elastic.torchrun.round_store import RoundStore


class RestartRendezvousHandler(RendezvousBase):
    """An implementation of torchelastic's interface in which every method translates and delegates."""

    def __init__(
        self,
        params: RendezvousParameters,
        settings: AgentSettings,
        agent: RestartAgent,
        parts: ExitStack,
        *,
        host: str,
        spares: Spares | None,
    ) -> None:
        super().__init__(
            params,
            agent,
            parts,
            on_leave=f"this node leaves run {params.run_id!r}, its workers get {settings.grace_period:g} s",
            end_workers=lambda _: agent.workers.kill(),
        )
        self._agent = agent
        self._host = host
        self._spares = spares
        self._tcp_store: dist.Store | None = None
        self._round_store: dist.Store | None = None

    @property
    def use_agent_store(self) -> bool:
        """Always true: the workers' process group is made on an agent's store, which outlives every worker."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the next round. Raises what `RestartAgent.next_round` raises."""
        self._signals.install()
        if self._spares is not None and self._round_store is None:
            self._spares.wait_until_ready()  # the others train on while a joiner imports
        # Fresh for every round: nothing of an earlier one can be met in it.
        self._tcp_store = tcp_store = dist.TCPStore(self._host, 0, is_master=True, wait_for_workers=False)
        generation = self._agent.next_round(tcp_store.port)
        rank = [member.node for member in generation.members].index(self._agent.node_id)
        self._round_store = RoundStore(self._agent, generation, rank)  # Python's half must stay referenced
        where = RendezvousStoreInfo(generation.store_host, generation.store_port)
        return RendezvousInfo(self._round_store, rank, len(generation.members), where)

    def num_nodes_waiting(self) -> int:
        """Return more than 0 if the workers have to be started anew. Raises what `RestartAgent.num_waiting` raises."""
        return self._agent.num_waiting()
