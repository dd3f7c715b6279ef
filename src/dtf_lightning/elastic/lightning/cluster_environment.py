"""Rank and world size as Lightning sees them: the running generation's.

Replaced here, in Lightning's own class: `TorchElasticEnvironment.validate_settings`, see `accept_any_world`.
"""

from __future__ import annotations

from dtf_lightning.elastic.lightning.host.names import ClusterEnvironment, TorchElasticEnvironment


class ElasticEnvironment(ClusterEnvironment):
    """A cluster environment whose world changes while the trainer runs.

    Before the first generation, rank and world size are the agent's provisional ones.
    """

    def __init__(self, *, rank: int, world_size: int, local_rank: int, num_local_workers: int) -> None:
        super().__init__()
        self._local_rank = local_rank
        self._num_local_workers = num_local_workers
        self.enter(rank=rank, world_size=world_size)

    def enter(self, *, rank: int, world_size: int) -> None:
        """Take a place in a new world."""
        self._rank, self._world_size = rank, world_size

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        raise NotImplementedError("an elastic run has no main address: each generation has a store of its own")

    @property
    def main_port(self) -> int:
        raise NotImplementedError("an elastic run has no main port: each generation has a store of its own")

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._world_size

    def set_world_size(self, size: int) -> None:
        """The generation decides."""

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """The generation decides."""

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return self._rank // self._num_local_workers

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Any number fits: the world is not the trainer's to choose."""


def accept_any_world() -> None:
    """Let `Trainer(num_nodes=..., devices=...)` be what it likes: torchelastic's world changes, the script does not.

    Lightning compares the two when `fit` begins, before any hook of a callback; the environment that it compares with is
    made together with the trainer, and replaced by `ElasticEnvironment` in the set-up hook.
    """
    TorchElasticEnvironment.validate_settings = ElasticEnvironment.validate_settings  # type: ignore[assignment,method-assign]
