"""`RoundStore` is torchelastic's store for one round: it answers from the agents' records, so that no death blocks it.

torchelastic asks a store for two things, the ranks of its workers and a barrier at the end. On a TCPStore both would
hang or raise in the agent when the store's host dies between rendezvous and start; here the answer is always there.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from dtf_lightning.elastic.agent.restart.agent import RestartAgent
from dtf_lightning.elastic.rules.generation import Generation

ROLE_INFO = "torchelastic/role_info/"
ASSIGNED_RANKS = "torchelastic/assigned_ranks/"
_ANY = b"1"


class RoundStore(dist.Store):
    """A store that knows the keys which torchelastic 2.13 uses (`SimpleElasticAgent`), and refuses others."""

    def __init__(self, agent: RestartAgent, generation: Generation, group_rank: int) -> None:
        super().__init__()
        self._agent = agent
        self._generation = generation
        self._group_rank = group_rank
        self._role = ""
        self._timeout = timedelta(seconds=300)

    def set(self, key: str, value: Any) -> None:
        if key.startswith(ROLE_INFO):
            info = json.loads(value)
            self._role = info["role"]
            self._agent.workers_starting(int(info["local_world_size"]))

    def multi_set(self, keys: list[str], values: list[Any]) -> None:
        """Accept the ranks that the first node's agent writes for all nodes, and drop them: every node knows them."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        assert all(key.startswith(ROLE_INFO) for key in keys), keys
        infos = [
            {"role": self._role, "rank": rank, "local_world_size": num}
            for rank, num in enumerate(self._agent.workers_of(self._generation))
        ]
        return [json.dumps(info).encode() for info in infos]

    def get(self, key: str) -> bytes:
        if not key.startswith(ASSIGNED_RANKS):
            return _ANY
        num_workers = self._agent.workers_of(self._generation)
        base, total = sum(num_workers[: self._group_rank]), sum(num_workers)
        return json.dumps([base, total, base, total]).encode()

    def add(self, key: str, amount: int) -> int:  # noqa: ARG002 - torch's signature
        """Return 0 for the barrier's count: only `wait` knows when all nodes are there."""
        return 0

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:  # noqa: ARG002 - torch's signature
        """Wait at the barrier. Raises `DistStoreError` if the others have not ended in time."""
        seconds = (timeout or self._timeout).total_seconds()
        if not self._agent.finished(seconds):
            raise dist.DistStoreError(f"other nodes still work {seconds:g} s after this one has finished")

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout = timeout

    @property
    def timeout(self) -> timedelta:
        return self._timeout
