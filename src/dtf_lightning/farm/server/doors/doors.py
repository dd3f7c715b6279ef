"""`Doors`: what stands between those who ask and a coordinator, together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtf_lightning.clock import SystemClock
from dtf_lightning.farm.security.keys import SharedSecret
from dtf_lightning.farm.security.sealing.sources import KeySource
from dtf_lightning.farm.server.doors.authenticator import Authenticator
from dtf_lightning.farm.server.doors.office import TokenOffice
from dtf_lightning.farm.server.doors.permits import Permits
from dtf_lightning.farm.server.secrets.secret_keeper import SecretKeeper

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator


def _not_written(**_: object) -> None:
    """No audit file is kept."""


@dataclass(frozen=True)
class Doors:
    """Those of one coordinator."""

    authenticator: Authenticator
    office: TokenOffice
    permits: Permits
    secrets: SecretKeeper

    @classmethod
    def of(
        cls,
        coordinator: Coordinator,
        secret: str,
        farm: str,
        tell: Callable[..., None] = _not_written,
        *,
        keys: KeySource | None = None,
        shared: SharedSecret | None = None,
    ) -> Doors:
        """Make them.

        Args:
            secret: the farm's own token.
            tell: writes a line into the audit file.
            keys: of the secrets' store; `None`: the farm keeps no secrets.
            shared: by which others make tokens for this farm.
        """
        pool, clock = coordinator.pool, SystemClock()
        authenticator = Authenticator(secret, farm, pool.mirror, clock, shared)
        pool.listeners.append(authenticator.changed)
        return cls(
            authenticator=authenticator,
            office=TokenOffice(pool, coordinator.record, authenticator, clock, tell),
            permits=Permits(pool, coordinator.tasks, coordinator.history),
            secrets=SecretKeeper(pool, coordinator.record, clock, farm=farm, source=keys or KeySource(), tell=tell),
        )
