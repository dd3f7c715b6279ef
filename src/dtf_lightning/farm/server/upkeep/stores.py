"""Where a coordinator keeps what is not in etcd, as its settings say."""

from __future__ import annotations

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.keys import FarmKeys
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.results.archivist import ArchiveSettings
from dtf_lightning.farm.results.artifacts import ArtifactStore
from dtf_lightning.farm.results.history import History, HistoryPlace
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import CoordinatorPlace
from dtf_lightning.farm.settings.coordinator import SKEW
from dtf_lightning.farm.settings.hosts import is_remote, local_files_refusal

MEBIBYTE = 1 << 20


def make_stores(store: Store, record: FarmRecord, place: CoordinatorPlace) -> tuple[History, FarmFiles]:
    """Return results and files, neither of them open yet. Raises `SettingsError` for a place that nothing can reach."""
    settings = place.settings
    places, retention = settings.places(place.folder), settings.retention
    history = History(
        store,
        record,
        HistoryPlace(
            folder=place.folder,
            coordinator=place.name,
            archive=places["archive.url"],
            file=settings.database_file,
        ),
        settings=ArchiveSettings(
            keep=retention.results, ids=retention.ids, skew=SKEW, tombstones=retention.tombstones_kept
        ),
    )
    artifacts = ArtifactStore(places["artifacts.url"], int(settings.artifacts.max_size * MEBIBYTE))
    return history, FarmFiles(place.folder, artifacts)


def refuse_half_restored(store: Store, farm: str) -> None:
    """Raise `SettingsError` where a backup is being put back into etcd, or was and did not end; and what etcd raises."""
    if store.get(FarmKeys(farm).restoring) is not None:
        raise SettingsError(
            f"a backup is being restored into the farm {farm!r}, or its restore did not end: wait for `dtf farm restore`, or run it again "
            "with the same file"
        )


def refuse_other_hosts(pool: Pool, place: CoordinatorPlace) -> None:
    """Raise `SettingsError` where another coordinator could not find this one's files."""
    others = {name: record.host for name, record in pool.coordinators().items() if name != place.name}
    local = {key: url for key, url in place.settings.places(place.folder).items() if not is_remote(url)}
    if refusal := local_files_refusal(place.host, others, local, shared=place.settings.farm.shared):
        raise SettingsError(refusal)
