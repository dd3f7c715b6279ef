"""`ArtifactSender`: brings the files that attempts have left to the farm's store, through any coordinator.

Rules that this file guards:
- An attempt's result is said once its files are stored. Files are read from the worker's disk, where they stay until the
  result is recorded: a coordinator that is away costs time only, and the next process of this worker begins anew.
- A file that the farm refuses, or cannot store for `PATIENCE` seconds, holds up no result: the result names it as missing.
- What is stored already is not sent again, and what is too large is not even begun.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.http import Connection, FarmRefused, FarmUnreachable
from dtf_lightning.farm.messages import Result
from dtf_lightning.farm.worker.results import INDEX, MAX_ARTIFACTS

log = logging.getLogger(__name__)

PATIENCE = 60.0
PAUSE = 0.5
BATCH = 500
"""Files of one offer."""
THREADS = 2
_THEIR_FAULT = 500


class Closing(DtfError):
    """The worker ends: the next one on its folder goes on."""


class ArtifactSender:
    """Has threads of its own. Thread-safe.

    Args:
        connection: to the farm.
        complete: is called, in a thread of this object, with each result as it can be said.
    """

    def __init__(
        self, connection: Connection, complete: Callable[[Result], object], *, patience: float = PATIENCE
    ) -> None:
        self._connection = connection
        self._complete = complete
        self._patience = patience
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="dtf-farm-artifacts")

    def send(self, result: Result, *, rank: int = 0) -> None:
        """Store what an attempt has left, then `complete`. Where it has left nothing, that is at once.

        `rank`: of this worker in its gang; names of all but the first begin with `rank<rank>/`.
        """
        if not result.outcome.artifacts:
            self._complete(result)
        elif not self._closing.is_set():
            self._pool.submit(self._send, result, f"rank{rank}/" if rank else "")

    def close(self) -> None:
        """End the threads; what is not stored stays on the disk."""
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)

    def _send(self, result: Result, prefix: str) -> None:
        try:
            urls, missing = _Upload(self._connection, result, prefix, self._patience, self._closing).run()
        except Closing:
            return
        except Exception as error:
            log.exception("the artifacts of task %s", result.task)
            urls, missing = {}, dict.fromkeys((f"{prefix}{name}" for name in result.outcome.artifacts), repr(error))
        finally:
            self._connection.close()
        outcome = result.outcome
        names = [f"{prefix}{name}" for name in outcome.artifacts]
        shown = {name: urls[name] for name in names if name in urls}
        reason = f"{outcome.reason}; {_told(missing)}" if missing else outcome.reason
        named = tuple(sorted(missing))[:MAX_ARTIFACTS]
        self._complete(replace(result, outcome=replace(outcome, artifacts=shown, missing=named, reason=reason)))


class _Upload:
    """One attempt's files."""

    def __init__(
        self, connection: Connection, result: Result, prefix: str, patience: float, closing: threading.Event
    ) -> None:
        self._prefix = prefix
        self._connection = connection
        self._result = result
        self._path = f"/api/tasks/{result.task}/artifacts"
        self._patience = patience
        self._closing = closing
        self._failing_since: float | None = None

    def run(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return name -> URL of what is stored, and name -> why of what is not. Raises `Closing`."""
        found = all_files(self._result.outcome.artifacts)
        files = {f"{self._prefix}{name}": path for name, path in found.items()}
        urls: dict[str, str] = {}
        missing: dict[str, str] = {}
        names = sorted(files)
        for start in range(0, len(names), BATCH):
            batch = {name: files[name] for name in names[start : start + BATCH]}
            digests = dict(self._digests(batch, missing))
            while True:
                try:
                    self._bring(batch, digests, urls, missing)
                    break
                except FarmUnreachable as error:
                    self._pause(error)
                except FarmRefused as refusal:
                    if refusal.status < _THEIR_FAULT or self._is_enough():
                        missing |= dict.fromkeys(digests.keys() - urls.keys(), str(refusal))
                        break
                    self._pause(refusal)
        return urls, missing

    def _digests(self, batch: Mapping[str, Path], missing: dict[str, str]) -> Iterator[tuple[str, str]]:
        for name, path in batch.items():
            try:
                with path.open("rb") as file:
                    yield name, hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                missing[name] = f"it cannot be read: {error.strerror}"

    def _bring(
        self, batch: Mapping[str, Path], digests: Mapping[str, str], urls: dict[str, str], missing: dict[str, str]
    ) -> None:
        revision = self._result.revision
        left = [name for name in digests if name not in urls and name not in missing]
        offer = [{"name": name, "size": batch[name].stat().st_size, "digest": digests[name]} for name in left]
        told = self._connection.ask("POST", self._path, {"files": offer}, revision=revision)
        urls |= told["stored"]
        missing |= told["refused"]
        for name in told["wanted"]:
            if self._closing.is_set():
                raise Closing
            try:
                stored = self._connection.send_file(
                    "PUT", self._path, batch[name], revision=revision, name=name, digest=digests[name]
                )
            except FarmRefused as refusal:
                if refusal.status >= _THEIR_FAULT:
                    raise
                missing[name] = str(refusal)
            else:
                urls[name] = stored["url"]
                self._failing_since = None

    def _is_enough(self) -> bool:
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        return now - self._failing_since >= self._patience

    def _pause(self, error: DtfError) -> None:
        log.warning("artifacts of task %s are not stored: %s", self._result.task, error)
        if self._closing.wait(PAUSE):
            raise Closing


def all_files(artifacts: Mapping[str, str]) -> dict[str, Path]:
    """Return name -> path of all that an attempt has left, also what only its `INDEX` names."""
    files = {name: Path(path) for name, path in artifacts.items()}
    if INDEX in files:
        try:
            more = json.loads(files[INDEX].read_bytes())["artifacts"]
            files |= {str(name): Path(str(path)) for name, path in more.items()}
        except (OSError, ValueError, KeyError, AttributeError) as error:
            log.warning("%s: %r", files[INDEX], error)
    return files


def _told(missing: Mapping[str, str]) -> str:
    name, why = sorted(missing.items())[0]
    more = f" and {len(missing) - 1} more artifacts are" if len(missing) > 1 else " is"
    return f"the artifact {name!r}{more} missing: {why}"
