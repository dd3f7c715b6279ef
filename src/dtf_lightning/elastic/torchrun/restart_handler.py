"""torchelastic's rendezvous handler for restart mode: any stock script, all agents in one group, restart on change."""

from __future__ import annotations

import atexit

import torch.distributed as dist
from torch.distributed.elastic.rendezvous.api import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from dtf_lightning.elastic.agent.monitor import Monitor
from dtf_lightning.elastic.agent.notice import NoticePoller
from dtf_lightning.elastic.agent.restart.agent import RestartAgent
from dtf_lightning.elastic.agent.restart.spares import Spares
from dtf_lightning.elastic.agent.signals import LeaveOnSignal
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.elastic.torchrun.round_store import RoundStore
from dtf_lightning.etcd.store import Store
from dtf_lightning.processes.watchdog_process import Watchdog


class RestartRendezvousHandler(RendezvousHandler):
    """Implements torchelastic's interface; every method translates and delegates."""

    def __init__(
        self,
        params: RendezvousParameters,
        settings: AgentSettings,
        agent: RestartAgent,
        store: Store,
        host: str,
        watchdog: Watchdog,
        poller: NoticePoller | None = None,
        spares: Spares | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self._spares = spares
        self._poller = poller
        self._monitor = monitor
        self._backend = params.backend
        self._run_id = params.run_id
        self._agent = agent
        self._store = store
        self._host = host
        self._watchdog = watchdog
        self._tcp_store: dist.Store | None = None
        self._round_store: dist.Store | None = None
        text = f"this node leaves run {self._run_id!r}, its workers get {settings.grace_period:g} s"
        self._signals = LeaveOnSignal(text, agent.leave, lambda _: agent.workers.kill())
        atexit.register(self.close)

    def get_backend(self) -> str:
        return self._backend

    def get_run_id(self) -> str:
        return self._run_id

    @property
    def use_agent_store(self) -> bool:
        """The workers' process group is made on a store that an agent hosts: it outlives every worker."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """The next round. Raises what `RestartAgent.next_round` raises."""
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
        """Not 0 when the workers have to be started anew. Raises what `RestartAgent.num_waiting` raises."""
        return self._agent.num_waiting()

    def is_closed(self) -> bool:
        return self._agent.exit_reason

    def set_closed(self) -> None:
        """Nothing: one node's end is not the run's."""

    def shutdown(self) -> bool:
        self.close()
        return True

    def close(self) -> None:
        """Take the node out of the run. Idempotent."""
        atexit.unregister(self.close)
        if self._poller is not None:
            self._poller.close()
        if self._spares is not None:
            self._spares.close()
        self._agent.workers.kill()  # torchelastic has ended them, unless it was interrupted
        self._agent.close()
        if self._monitor is not None:
            self._monitor.close()
        self._store.close()
        self._watchdog.close()
