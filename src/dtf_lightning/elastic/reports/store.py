"""The database of runs as a Python object, for syncing, queries and exports."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.database.connection import LOCK_PATIENCE
from dtf_lightning.database.database import Database
from dtf_lightning.elastic.reports.ingest import SyncReport, add_events, sync_run
from dtf_lightning.elastic.reports.schema import RESULTS
from dtf_lightning.events.registry import Event


class ResultsStore(Database):
    """The database of runs, in a DuckDB file or in memory.

    DuckDB lets one process write to a file at a time, with no reader beside it. Training never does: it writes event
    logs, and the database is made from them. A process that finds the file in use waits up to `patience` seconds.

    Args:
        path: the database's file, which is created; `:memory:` for a database that is not kept.
        read_only: allow other readers at the same time; the file must exist and be up to date.

    Raises:
        SettingsError: the file belongs to another program or a newer version, or stays in use.
    """

    def __init__(
        self, path: str | Path = ":memory:", *, read_only: bool = False, patience: float = LOCK_PATIENCE
    ) -> None:
        super().__init__(RESULTS, path, read_only=read_only, patience=patience)

    def sync(self, run_dir: str | Path) -> SyncReport:
        """Take in what is new in a run's folder; a second sync changes nothing, nor does one that fails.

        Raises `SettingsError`: there is no run's folder, events are newer, a file cannot be read, the disk is full.
        """
        with self.in_words(f"the sync of {run_dir} into {self.path} failed and changed nothing"):
            return sync_run(self.connection, Path(run_dir))

    def add(self, run: str, events: Iterable[Event], *, file: str = "added") -> int:
        """Insert events as the next lines of the run's log `file`, all of them or none; return how many.

        A log belongs to one start of a worker, or to an agent: give each its own `file`. Raises `SettingsError`.
        """
        with self.in_words(f"the events were not added to {self.path}"):
            return add_events(self.connection, run, file, events)
