"""What a provider of workers is asked, and what it may say. All calls may take long: they are made in threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from dtf_lightning.errors import DtfError

LEFT_ALONE = 3600.0
"""Seconds after which a worker ends that has had no task, where nobody drains it: the farm may have forgotten it."""


class ProviderFailed(DtfError):
    """A provider has not done what it was asked for; why, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class WorkersWanted:
    """What is asked of a provider."""

    pool: str
    names: tuple[str, ...]
    """Of workers that are to be started, or ended. The same name may be asked for twice, by one leader after the other."""
    total: int
    """Workers of the pool that are there then, and on their way."""
    devices: dict[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    coordinator: str = ""
    """URL of a coordinator."""
    token_file: str = ""
    ca: str = ""
    timeout: float = 60.0
    """Seconds for the answer."""

    def words(self, name: str) -> list[str]:
        """Return the arguments of `dtf` that start one of them."""
        devices = self.devices
        return [
            *("farm", "worker", "--name", name, "--coordinator", self.coordinator, "--token-file", self.token_file),
            *(("--ca", self.ca) if self.ca else ()),
            *(("--cpus", f"{devices['cpu']:g}") if "cpu" in devices else ()),
            *(("--memory", f"{devices['memory']:g}") if "memory" in devices else ()),
            *(word for label in self.labels for word in ("--label", label)),
            *("--until-idle", f"{LEFT_ALONE:g}"),
        ]


class Provider(ABC):
    """Starts workers."""

    ends = False
    """Whether it ends workers, too: they are cordoned and not drained, and it is asked once nothing runs there."""
    names = True
    """Whether workers have the names that were asked for."""

    @abstractmethod
    def start(self, wanted: WorkersWanted) -> None:
        """Start these workers, those of them that were not started under this name before. Raises `ProviderFailed`."""

    def end(self, wanted: WorkersWanted) -> None:
        """End these workers, on which nothing runs. Raises `ProviderFailed`. Only asked where `ends`."""
        raise ProviderFailed(f"{', '.join(wanted.names)}: workers of this provider end when they are drained")
