"""Makes a coordinator's scaler from its settings."""

from __future__ import annotations

from collections.abc import Callable

from dtf_lightning.clock import Clock
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.scaling.providers import provider_of
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import CoordinatorPlace
from dtf_lightning.farm.server.scaling.scaler import FarmPool, Here, Scaler
from dtf_lightning.farm.settings.pools import read_pools


def scaler_of(
    record: FarmRecord, pool: Pool, place: CoordinatorPlace, clock: Clock, epoch: Callable[[], int]
) -> Scaler:
    """Return the scaler, without pools where the settings name no file of them. Raises `SettingsError` for what cannot work."""
    settings = place.settings
    told = read_pools(settings.path(settings.scaling.pools)) if settings.scaling.pools else {}
    token_file = str(settings.path(settings.security.token_file)) if settings.security.token_file else ""
    for name, one in told.items():
        if not one.token_file and not token_file:
            raise SettingsError(
                f"the pool {name} has no token for its workers: give it `token_file`, or `security.token_file`"
            )
    return Scaler(
        record,
        pool,
        clock,
        [
            FarmPool(name=name, settings=one, provider=provider_of(name, one, place.folder))
            for name, one in told.items()
        ],
        Here(coordinator=place.address, token_file=token_file),
        epoch=epoch,
        dry_run=settings.scaling.dry_run,
    )
