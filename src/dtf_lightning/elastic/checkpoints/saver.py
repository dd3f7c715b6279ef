"""Saves checkpoints into one location, at once or beside training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from dtf_lightning.elastic.checkpoints.async_saver import AsyncSaver
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.formats import safetensors_file, torch_file
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.retention import Policy
from dtf_lightning.elastic.checkpoints.storage.interface import Write
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage


class CheckpointSaver:
    """All ranks have one; `save`, `annotate` and `folder` are for the one that writes.

    Args:
        max_in_flight: asynchronous saves at a time; `None` to write at once.
        safetensors: beside each checkpoint, its weights as `.safetensors`.
    """

    def __init__(self, policy: Policy, *, max_in_flight: int | None, safetensors: bool) -> None:
        self.policy = policy
        self.location = ""
        """A folder or fsspec URL: where checkpoints go from the first save on."""
        self._safetensors = safetensors
        self._beside = AsyncSaver(max_in_flight) if max_in_flight is not None else None
        self._folder: CheckpointFolder | None = None

    @property
    def staged_bytes(self) -> int:
        """Host memory that asynchronous saving holds."""
        return self._beside.staged_bytes if self._beside is not None else 0

    def check_formats(self) -> None:
        """Raise `SettingsError` for a format whose package is missing: now rather than at the first save."""
        if self._safetensors:
            safetensors_file({})

    def save(
        self,
        run: str,
        name: str,
        checkpoint: Mapping[str, Any],
        steady: Callable[[], Collection[int]],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
    ) -> tuple[Record, ...]:
        """Save Lightning's dictionary; the records of what is kept so far. `steady` as for `AsyncSaver.save`.

        Raises `CheckpointError`: this save, or an earlier one beside training, has failed.
        """
        folder = self._open(run)

        def write(checkpoint: Mapping[str, Any]) -> None:
            folder.save(name, self._files(checkpoint), step=step, epoch=epoch, metrics=metrics)

        if self._beside is None:
            write(checkpoint)
        else:
            self._beside.save(checkpoint, steady, write, f"checkpoint {name}")
        return folder.records

    def annotate(self, run: str, step: int, name: str, metrics: Mapping[str, float]) -> tuple[Record, ...]:
        """Give the checkpoint of this step, which was to have this name, more metrics; raises as `save`."""
        folder = self._open(run)

        def annotate() -> object:
            # A name that was taken got a version: the record of this step is the one that was meant.
            known = [record.name for record in folder.records if record.step == step]
            return folder.annotate(known[-1] if known else name, metrics)

        if self._beside is None:
            annotate()
        else:
            self._beside.submit(annotate)
        return folder.records

    def folder(self, run: str) -> CheckpointFolder:
        """The folder, when all is written. Raises `CheckpointError`: a save has failed."""
        self.flush()
        return self._open(run)

    def check(self) -> None:
        """Raise the error of a save beside training, once."""
        if self._beside is not None:
            self._beside.check()

    def flush(self) -> None:
        """Wait until all is written. Raises `CheckpointError`: a save has failed."""
        if self._beside is not None:
            self._beside.flush()

    def wait_until_copied(self) -> None:
        """The state may change after this."""
        if self._beside is not None:
            self._beside.wait_until_copied()

    def _open(self, run: str) -> CheckpointFolder:
        if self._folder is None:
            self._folder = CheckpointFolder(open_storage(self.location), run, self.policy)
        return self._folder

    def _files(self, checkpoint: Mapping[str, Any]) -> dict[str, Write]:
        files = {".ckpt": torch_file(checkpoint)}
        if self._safetensors:
            files[".safetensors"] = safetensors_file(checkpoint["state_dict"])
        return files
