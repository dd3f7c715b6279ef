"""`LiveRendezvousHandler` is torchelastic's rendezvous handler for live runs: an adapter around the agent.

Every agent is a torchelastic group of one node, so that torchelastic starts, watches and restarts the local workers and
knows nothing of the others: joiners and failures elsewhere never make it stop ours. What torchelastic hands to the
workers as MASTER_PORT is no port but the explanation that a stock DDP script needs to see.
"""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from typing import cast

import torch.distributed as dist
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from dtf_lightning.elastic.agent.live.agent import LiveAgent
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.elastic.torchrun.rendezvous import RendezvousBase

ROLE_INFO_KEY = "torchelastic/role_info/0"
"""The key at which torchelastic writes the number of local workers just before it starts them, and nowhere else."""
WAYS_OUT = (
    "add `ElasticCallback()` from dtf_lightning to the Lightning Trainer's callbacks, or run the script as it is with "
    "`--rdzv-conf mode=restart`"
)
NO_MASTER_PORT = (
    "none: live dtf-lightning run, which makes the process groups itself. Add ElasticCallback() to the Trainer's "
    "callbacks, or torchrun --rdzv-conf mode=restart"
)
"""The text that the ValueError of a stock script's `int(MASTER_PORT)` shows, which is cut after 200 characters."""


class LiveRendezvousHandler(RendezvousBase):
    """An implementation of torchelastic's interface in which every method translates and delegates."""

    def __init__(
        self,
        params: RendezvousParameters,
        settings: AgentSettings,
        agent: LiveAgent,
        parts: ExitStack,
        *,
        tcp_store: dist.Store,
    ) -> None:
        super().__init__(
            params,
            agent,
            parts,
            on_leave=(
                f"this node leaves run {params.run_id!r} at the next step boundary (at most {settings.grace_period:g} s)"
            ),
            end_workers=agent.end_workers,
        )
        self._agent = agent
        self._tcp_store = tcp_store  # lives as long as the agent: workers' groups are made on it
        self._attach_timeout = settings.attach_timeout
        self._num_starts = 0
        self._group_store: dist.Store | None = None

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        """Start a new incarnation of this node's workers.

        Raises what `LiveAgent.await_start` raises, and `RendezvousClosedError` for workers that fail after their run.
        """
        self._signals.install()
        if self._num_starts and self._agent.workers_went_home:
            raise RendezvousClosedError(
                f"a worker failed after it had left run {self._run_id!r} or the run had finished; starting it again "
                "would train nothing. See the worker's own error above"
            )
        self._agent.await_start()
        self._num_starts += 1
        self._group_store = dist.HashStore()
        threading.Thread(
            target=self._tell_num_workers, args=(self._group_store,), daemon=True, name="dtf-num-workers"
        ).start()
        # torchelastic only ever turns the port into a string.
        no_port = cast("int", NO_MASTER_PORT)
        return RendezvousInfo(self._group_store, 0, 1, RendezvousStoreInfo("live-run.invalid", no_port))

    def _tell_num_workers(self, store: dist.Store) -> None:
        store.wait([ROLE_INFO_KEY])
        self._agent.workers_starting(int(json.loads(store.get(ROLE_INFO_KEY))["local_world_size"]))

    def num_nodes_waiting(self) -> int:
        """Return 0: a group of one node never changes. Raises like `LiveAgent.check`, and if no callback comes."""
        self._agent.check()
        timeout = self._attach_timeout
        if self._agent.num_missing and self._agent.running_for > timeout:
            raise RendezvousError(
                f"{self._agent.num_missing} workers of this node have not constructed `ElasticCallback` within "
                f"{timeout:g} s (--rdzv-conf attach_timeout={timeout:g}), so nothing holds this run together. "
                f"Two ways out: {WAYS_OUT}."
            )
        return 0
