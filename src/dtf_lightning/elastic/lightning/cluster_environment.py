"""`ElasticEnvironment` shows Lightning the rank and world size of the current generation. Internal.

Replaced here, in Lightning's own class: `TorchElasticEnvironment.validate_settings`, see `accept_any_world`.
"""

from __future__ import annotations

from dtf_lightning.elastic.lightning.host.names import ClusterEnvironment, TorchElasticEnvironment


class ElasticEnvironment(ClusterEnvironment):
    """Tell Lightning its rank and world size, which change while the trainer runs.

    Before the first generation, rank and world size are provisional (see `World`).
    """

    def __init__(self, *, rank: int, world_size: int, local_rank: int, num_local_workers: int) -> None:
        super().__init__()
        self._local_rank = local_rank
        self._num_local_workers = num_local_workers
        self.enter(rank=rank, world_size=world_size)

    def enter(self, *, rank: int, world_size: int) -> None:
        """Set the rank (starting at 0) and the number of workers of a new world."""
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
        """Do nothing: the generation decides the world size."""

    def global_rank(self) -> int:
        return self._rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the generation decides the rank."""

    def local_rank(self) -> int:
        return self._local_rank

    def node_rank(self) -> int:
        return self._rank // self._num_local_workers

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Accept any number of devices and nodes: the trainer does not choose the world."""


def accept_any_world() -> None:
    """Accept any `Trainer(num_nodes=..., devices=...)`: torchelastic's world changes, the script does not.

    Lightning compares these arguments with the world when `fit` begins, before any hook of a callback. The environment
    that it compares with is made together with the trainer, and replaced by `ElasticEnvironment` in the set-up hook.
    """
    TorchElasticEnvironment.validate_settings = ElasticEnvironment.validate_settings  # type: ignore[assignment,method-assign]
