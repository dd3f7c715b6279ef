"""The database of runs as a Python object: sync, ask, export."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.database.connection import LOCK_PATIENCE
from dtf_lightning.database.database import Database
from dtf_lightning.elastic.reports.ingest import SyncReport, add_events, sync_run
from dtf_lightning.elastic.reports.schema import RESULTS
from dtf_lightning.events.registry import Event


class ResultsStore(Database):
    """Runs in a DuckDB file, or in memory.

    DuckDB lets one process write to a file at a time, with no reader beside it. Training never does: it writes event
    logs, and whoever wants a database makes one from them. Who finds the file in use waits up to `patience` seconds.

    Args:
        path: is created; `:memory:` for a database that nobody needs later.
        read_only: beside other readers; the file must exist and be up to date.

    Raises:
        SettingsError: a file of another program or of a newer version, or one that stays in use.
    """

    def __init__(
        self, path: str | Path = ":memory:", *, read_only: bool = False, patience: float = LOCK_PATIENCE
    ) -> None:
        super().__init__(RESULTS, path, read_only=read_only, patience=patience)

    def sync(self, run_dir: str | Path) -> SyncReport:
        """Take in what is new in a run's folder; twice changes nothing, a failure changes nothing.

        Raises `SettingsError`: no run's folder, newer events, a file that cannot be read, a disk that is full.
        """
        with self.in_words(f"the sync of {run_dir} into {self.path} failed and changed nothing"):
            return sync_run(self.connection, Path(run_dir))

    def add(self, run: str, events: Iterable[Event], *, file: str = "added") -> int:
        """Typed rows in: as if they were the next lines of the run's log `file`, all of them or none; how many.

        A log belongs to one start of a worker, or to an agent: give each its own `file`. Raises `SettingsError`.
        """
        with self.in_words(f"the events were not added to {self.path}"):
            return add_events(self.connection, run, file, events)
