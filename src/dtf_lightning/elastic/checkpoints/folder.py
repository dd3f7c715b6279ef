"""`CheckpointFolder`, the only writer of a run's checkpoints.

Rules that this file guards, at every instant and so after every crash:

* a checkpoint is removed only after the manifest that no longer lists it is durable, and that manifest is written only
  after the newer checkpoint is durable: so the best N and the last one are always whole on the disk;
* the manifest lists whole checkpoints only, and names whatever else of this run lies in the folder;
* no file that this run has not written is touched, and no existing file is written over.
"""

from __future__ import annotations

import contextlib
import logging
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.checkpoints import manifest as manifests
from dtf_lightning.elastic.checkpoints.manifest import Manifest
from dtf_lightning.elastic.checkpoints.record import Part, Record
from dtf_lightning.elastic.checkpoints.retention import Policy
from dtf_lightning.elastic.checkpoints.storage.interface import TEMPORARY, Storage, Write, checksum
from dtf_lightning.errors import CheckpointError

log = logging.getLogger("dtf_lightning")


class CheckpointFolder:
    """A run's checkpoints in one place. Not for several threads, or several writers, at once.

    Args:
        storage: where the checkpoints lie.
        run: the run's name; a run that resumes gives the same name again and finds its checkpoints.
        policy: which checkpoints stay.
        recover: finish what a writer that died has begun; not while that writer may be alive.

    Raises:
        CheckpointError: the place cannot be read or written.
    """

    def __init__(
        self, storage: Storage, run: str, policy: Policy, clock: Clock | None = None, *, recover: bool = True
    ) -> None:
        self.storage = storage
        self.policy = policy
        self._clock = clock or SystemClock()
        self._manifest = Manifest(run=run)
        self._recovers = recover
        with self._errors("opening"):
            self._refresh()
            if recover:
                self._recover()

    @property
    def run(self) -> str:
        """The name of the run whose checkpoints these are."""
        return self._manifest.run

    @property
    def records(self) -> tuple[Record, ...]:
        """The records of the checkpoints that are kept now, oldest first."""
        return self._manifest.records

    # --- changing ----------------------------------------------------------------------------------------------------

    def save(
        self,
        name: str,
        files: Mapping[str, Write],
        *,
        step: int,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> Record | None:
        """Save a checkpoint, then remove what the policy no longer keeps.

        Args:
            name: the checkpoint's name; if it is taken, `-v1`, `-v2`, ... is put before its suffix.
            files: what to write: for each file, what follows the name's stem (`.ckpt`, `.safetensors`) and its content.

        Returns: the record; `None` when the policy does not want the checkpoint, and nothing was written.

        Raises:
            CheckpointError: nothing was saved and nothing removed, for example because the disk is full.
        """
        with self._errors("saving"):
            self._begin()
            record = self._new_record(name, tuple(files), step, epoch, metrics or {})
            # Which checkpoints are kept is decided with the new one among them, before anything is written or removed.
            if record.name not in self.policy.keep([*self.records, record]):
                return None
            self._commit(intended=record)
            try:
                parts = [
                    self.storage.write(part.path, files[suffix])
                    for part, suffix in zip(record.parts, files, strict=True)
                ]
            except BaseException:
                self._give_up(record)
                raise
        return self._admit(replace(record, parts=tuple(parts)))

    def begin(self, name: str, *, step: int, epoch: int = 0, metrics: Mapping[str, float] | None = None) -> Record:
        """Announce a checkpoint that is a folder of files which others write (all ranks, for sharded state).

        `finish` or `abandon` must follow. Raises `CheckpointError`.
        """
        with self._errors("saving"):
            self._begin()
            record = self._new_record(name, (), step, epoch, metrics or {})
            self._commit(intended=record)
        return record

    def finish(self, record: Record, paths: Sequence[str]) -> Record | None:
        """List the record that `begin` gave, whose files are all durable; then remove what the policy no longer keeps.

        Args:
            paths: the paths of its files, relative to its folder.

        Returns: the record; `None` when the policy does not want the checkpoint.

        Raises:
            CheckpointError: it is not listed; nothing was removed.
        """
        with self._errors("saving"):
            parts = tuple(checksum(self.storage, f"{record.name}/{path}") for path in paths)
        return self._admit(replace(record, parts=parts))

    def abandon(self, record: Record) -> None:
        """Remove what is there of a checkpoint that `begin` announced and whose writing has failed."""
        self._give_up(record)

    def annotate(self, name: str, metrics: Mapping[str, float]) -> Record | None:
        """Add metrics that were measured after the saving; return `None` if there is no such checkpoint (any more).

        Raises:
            CheckpointError: the manifest could not be written; the metrics are not kept.
        """
        with self._errors("annotating"):
            self._begin()
            changed = None
            records = []
            for record in self.records:
                if record.name == name:
                    record = changed = record.with_metrics(metrics)  # noqa: PLW2901  frozen: replaced, not changed
                records.append(record)
            if changed is not None:
                self._retain(records)
        return changed

    def suspect(self, since_step: int) -> list[Record]:
        """Mark the checkpoints saved at or after a step at which training began to diverge; return those still kept.

        Raises:
            CheckpointError: the manifest could not be written; nothing is marked.
        """
        with self._errors("marking"):
            self._begin()
            self._retain([replace(r, suspect=True) if r.step >= since_step else r for r in self.records])
        return [record for record in self.records if record.suspect]

    def prune(self, policy: Policy, *, dry_run: bool = False) -> list[Record]:
        """Remove what `policy` does not keep, once; return what was, or would be, removed. Raises `CheckpointError`."""
        with self._errors("pruning"):
            self._begin()
            kept = policy.keep(self.records)
            removed = [record for record in self.records if record.name not in kept]
            if removed and not dry_run:
                self._settle([record for record in self.records if record.name in kept], removed)
        return removed

    # --- steps of the above ------------------------------------------------------------------------------------------

    def _new_record(
        self, name: str, suffixes: tuple[str, ...], step: int, epoch: int, metrics: Mapping[str, float]
    ) -> Record:
        stem, dot, suffix = name.rpartition(".")
        if not dot:
            stem, suffix = name, ""
        version = 0
        while True:
            tried = f"{stem}-v{version}" if version else stem
            paths = [f"{tried}{ending}" for ending in suffixes]
            full = f"{tried}{dot}{suffix}"
            if not any(self.storage.exists(path) for path in {full, *paths}):
                break
            version += 1
        return Record(
            name=full,
            serial=1 + max((record.serial for record in self.records), default=0),
            step=step,
            epoch=epoch,
            metrics=dict(metrics),
            saved_at=self._clock.wall(),
            parts=tuple(Part(path, 0, "") for path in paths),
        )

    def _admit(self, record: Record) -> Record | None:
        with self._errors("saving"):
            self._refresh()  # `dtf checkpoints prune` may have changed the manifest while the files were written
            if self._taken_over(record):
                for path in _paths(record):
                    self.storage.remove(path)
                raise CheckpointError(
                    f"{record.name} was written to {self.storage.url}, but another process has become the writer of run "
                    f"{self.run} meanwhile (this one was frozen, or left the run); its checkpoints count, this one is "
                    "given up"
                )
            self._retain([*self.records, record])
        return next((kept for kept in self.records if kept.name == record.name), None)

    def _retain(self, records: Sequence[Record]) -> None:
        kept = self.policy.keep(records)
        self._settle(
            [record for record in records if record.name in kept],
            [record for record in records if record.name not in kept],
        )

    def _settle(self, kept: Sequence[Record], removed: Sequence[Record]) -> None:
        doomed = tuple(path for record in removed for path in _paths(record))
        intended = None if self._recovers else self._manifest.intended  # it belongs to the living writer
        self._commit(records=tuple(kept), intended=intended, doomed=(*self._manifest.doomed, *doomed))
        self._remove_doomed()

    def _remove_doomed(self) -> None:
        """Remove the doomed files; what cannot be removed now stays doomed and is tried again with the next save."""
        left = []
        for path in self._manifest.doomed:
            try:
                self.storage.remove(path)
            except OSError as error:
                log.warning("checkpoint %s could not be removed: %s", self.storage.location(path), error)
                left.append(path)
        # On the disk they stay listed until the next edition: removing them twice is no error, and one write is saved.
        self._manifest = replace(self._manifest, doomed=tuple(left))

    def _give_up(self, record: Record) -> None:
        with contextlib.suppress(OSError):  # the first error is raised; `intended` lets the next open clean up
            self._clear(record)
            self._refresh()
            if not self._taken_over(record):
                self._commit(intended=None)

    def _taken_over(self, record: Record) -> bool:
        """Tell whether another writer has cleared this one's intention away: the manifest is then theirs."""
        intended = self._manifest.intended
        return intended is None or (intended.name, intended.saved_at) != (record.name, record.saved_at)

    def _commit(self, **changes: object) -> None:
        edition = replace(self._manifest, edition=self._manifest.edition + 1, **changes)  # type: ignore[arg-type]
        manifests.store(self.storage, edition)
        self._manifest = edition

    def _begin(self) -> None:
        """Read the manifest anew, and clear away what a save that failed could not (the disk was full)."""
        self._refresh()
        if self._manifest.intended is not None and self._recovers:
            self._clear(self._manifest.intended)

    def _clear(self, record: Record) -> None:
        for path in _paths(record):
            self.storage.remove(path + TEMPORARY)
            self.storage.remove(path)

    def _refresh(self) -> None:
        """Take over what another process (`dtf checkpoints prune`, a new rank 0) has written meanwhile."""
        loaded = manifests.load(self.storage, self.run)
        for slot in loaded.damaged:
            log.warning("a manifest in %s is damaged, using the other slot: %s", self.storage.url, slot)
        if loaded.manifest is not None and loaded.manifest.edition > self._manifest.edition:
            self._manifest = loaded.manifest

    def _recover(self) -> None:
        """Finish what a writer that died has begun."""
        for slot in (0, 1):
            self.storage.remove(manifests.file_name(self.run, slot) + TEMPORARY)
        intended = self._manifest.intended
        if intended is not None:
            # Under its final name a file is whole: it was synced before it was renamed.
            whole = bool(intended.parts) and all(_is_whole(self.storage, part.path) for part in intended.parts)
            if whole:
                for part in intended.parts:  # only half of a rename may have reached the disk
                    self.storage.remove(part.path + TEMPORARY)
                parts = tuple(checksum(self.storage, part.path) for part in intended.parts)
                self._retain([*self.records, replace(intended, parts=parts)])
            else:
                self._clear(intended)
                self._commit(intended=None)
        self._remove_doomed()

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            left = ", ".join(record.name for record in self.records) or "none so far"
            raise CheckpointError(
                f"{what} a checkpoint in {self.storage.url} failed: {error}. Nothing was lost: the earlier ones are "
                f"intact ({left}). Make room or repair the storage; training can go on."
            ) from error


def _paths(record: Record) -> list[str]:
    """Return what has to be removed with a checkpoint: its files, and the folder of a sharded one."""
    paths = [part.path for part in record.parts if "/" not in part.path]
    return paths if record.name in paths else [*paths, record.name]


def _is_whole(storage: Storage, name: str) -> bool:
    if not storage.exists(name):
        return False
    with storage.open(name) as file:
        if file.read(2) != b"PK":
            return True
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        except zipfile.BadZipFile:
            return False
