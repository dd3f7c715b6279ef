"""`Preparation`: what an attempt needs before its command can start: its order, its secrets, its files.

Called in threads of the worker's pool, and of its executor.
"""

from __future__ import annotations

import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from dtf_lightning import environment
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.calls.spelling import with_python
from dtf_lightning.farm.http import Connection, FarmRefused
from dtf_lightning.farm.messages import Run
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.rules.arrays import INDEX
from dtf_lightning.farm.rules.inputs import Input, InputKind, check_place, read_input
from dtf_lightning.farm.rules.needs import DEFAULT_NEED
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.farm.sources import unpack
from dtf_lightning.farm.worker.caches.repositories import GitCache
from dtf_lightning.farm.worker.caches.room import CacheRoom
from dtf_lightning.farm.worker.executor import Executor
from dtf_lightning.farm.worker.orders import AttemptOrder
from dtf_lightning.farm.worker.service.input_reader import InputReaders
from dtf_lightning.farm.worker.service.secret_files import SecretFiles

URL_SILENCE = 30.0
"""Seconds without a byte from an input's URL."""
URL_TIMEOUT = 3600.0
"""Seconds for all of it."""
CHUNK = 1024 * 1024
_NO_STORE = (404, 405)
"""What coordinators answer of a release that keeps no secrets."""

Fetch = Callable[[BinaryIO], None]
"""Writes an input's content into a file."""


class InputUnreachable(DtfError):
    """A worker could not read an input."""


class Preparation:
    """Thread-safe.

    Args:
        connection: to the farm.
        cache: folder in which files are kept for the next attempt.
        cache_bytes: of all that lies in it.
        secrets: the worker's.
        timeout: seconds, of an attempt whose task has none of its own.
        allow_pickle: whether functions are run that travel by cloudpickle.
        reach: variables by which a command finds the farm that may ask it.
    """

    def __init__(
        self,
        connection: Connection,
        cache: Path,
        cache_bytes: int,
        secrets: SecretFiles,
        *,
        timeout: float | None = None,
        allow_pickle: bool = True,
        reach: Mapping[str, str] | None = None,
    ) -> None:
        self._reach = dict(reach or {})
        self._timeout = timeout
        self._allow_pickle = allow_pickle
        self._connection = connection
        self._room = CacheRoom(cache, cache_bytes)
        self._repositories = GitCache(cache / "git")
        self._secrets = secrets
        self._readers = InputReaders(connection)

    def labels(self) -> tuple[str, ...]:
        """Return what the worker offers beside its machine: its secrets, by their names."""
        return self._secrets.labels()

    def order(self, message: Run) -> AttemptOrder:
        """Return what the executor is to run. Raises `SettingsError` for what cannot be run here."""
        self._room.wait()
        spec = message.specification
        needs = spec.needs or (DEFAULT_NEED,)
        if message.alternative >= len(needs):
            raise SettingsError(f"the task has {len(needs)} needs, and was placed by number {message.alternative + 1}")
        if spec.is_pickled and not self._allow_pickle:
            raise SettingsError(
                "this worker takes no functions that travel by cloudpickle (`allow_pickle: false` in the section `execution` "
                "of its worker.yaml)"
            )
        return AttemptOrder(
            task=message.task,
            number=message.number,
            revision=message.revision,
            command=with_python(spec.command, sys.executable) if spec.call else spec.command,
            returns=bool(spec.call),
            environment=spec.environment,
            timeout=spec.timeout if spec.timeout is not None else self._timeout,
            amounts=needs[message.alternative].amounts,
            folder=spec.folder,
            artifacts=spec.artifacts,
            rank=message.rank,
            own=_own_variables(message) | (self._reach if spec.permissions else {}),
            secrets=self._values(message.task, message.revision, spec.secrets),
            token=self._token(message) if spec.permissions else "",
            secret_names=tuple(spec.secrets),
            stdin=_reads_input(message),
        )

    def recall(self, order: AttemptOrder) -> Mapping[str, str]:
        """Return the secrets of an attempt that an earlier process of this worker has started. Raises as `order`."""
        return self._values(order.task, order.revision, order.secret_names)

    def _token(self, message: Run) -> str:
        return str(self._asked(f"/api/tasks/{message.task}/token", message.revision)["token"])

    def _asked(self, path: str, revision: int) -> Mapping[str, Any]:
        """Ask the farm over a connection that this thread does not keep: few attempts ask."""
        try:
            told: Mapping[str, Any] = self._connection.ask("POST", path, revision=revision)
            return told
        finally:
            self._connection.close()

    def _values(self, task: str, revision: int, names: Sequence[str]) -> dict[str, str]:
        """Return name -> value: what the farm keeps of them, and else what this worker has itself. Raises `DtfError`."""
        if not names:
            return {}
        try:
            told: Mapping[str, str] = self._asked(f"/api/tasks/{task}/secrets", revision)["secrets"]
        except FarmRefused as refusal:
            if refusal.status not in _NO_STORE:
                raise
            told = {}
        return {**self._secrets.values([name for name in names if name not in told]), **told}

    def tidy(self, busy: Callable[[], bool]) -> None:
        """Keep the cache folder within its limit. `busy`: whether an attempt is at hand."""
        self._room.tidy(busy)

    def go_on(self, executor: Executor) -> None:
        """Give attempts that an earlier process of this worker has started the rest of what they are to read."""
        for key in executor.reading():
            self._readers.follow(key, executor)

    def follow_input(self, message: Run, executor: Executor) -> None:
        """Give an attempt that was started what it is to read, as that comes. Returns at once."""
        if _reads_input(message):
            self._readers.follow((message.task, message.revision), executor)

    def files(self, message: Run) -> Callable[[Path], None] | None:
        """Return what brings an attempt's files into its workspace; `None` if it has none."""
        spec = message.specification
        return (lambda workspace: self._bring(spec, workspace)) if spec.source or spec.inputs else None

    def _bring(self, spec: TaskSpecification, workspace: Path) -> None:
        if spec.source:
            with self._room.inputs.hold(spec.source, self._stored(spec.source)) as archive:
                unpack(archive, workspace)
        for place, reference in spec.inputs.items():
            check_place(place)
            target = workspace / spec.folder / place
            if not target.parent.resolve().is_relative_to(workspace.resolve()):
                raise SettingsError(f"the input {place!r} would lie outside of the workspace")
            self._bring_input(read_input(reference), target)

    def _bring_input(self, wanted: Input, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if wanted.kind is InputKind.GIT:
            self._repositories.bring(wanted.url, wanted.commit, target)
            return
        fetch = self._from(wanted.url) if wanted.kind is InputKind.URL else self._stored(wanted.digest)
        with self._room.inputs.hold(wanted.digest, fetch) as file:
            if wanted.kind is InputKind.FOLDER:
                target.mkdir(exist_ok=True)
                unpack(file, target)
            elif target.exists() or target.is_symlink():
                raise SettingsError(f"the input {target.name!r} has the place of a file that came with the source")
            else:
                shutil.copyfile(file, target)  # a copy: a task may write to what is its own

    def _stored(self, digest: str) -> Fetch:
        def fetch(file: BinaryIO) -> None:
            _, chunks = self._connection.stream(f"/api/sources/{digest}")
            for chunk in chunks:
                file.write(chunk)

        return fetch

    def _from(self, url: str) -> Fetch:
        def fetch(file: BinaryIO) -> None:
            deadline = time.monotonic() + URL_TIMEOUT
            try:
                with urllib.request.urlopen(url, timeout=URL_SILENCE) as answer:
                    while chunk := answer.read(CHUNK):
                        if time.monotonic() > deadline:
                            raise TimeoutError(f"it took longer than {URL_TIMEOUT:g} s")
                        file.write(chunk)
            except (OSError, HTTPException, ValueError) as error:
                raise InputUnreachable(f"the input {url} cannot be read by this worker: {error}") from error

        return fetch


def reach_of(addresses: Sequence[str], trust: Trust) -> dict[str, str]:
    """Return the variables by which a command finds the farm."""
    ca = {environment.FARM_CA: str(trust.ca.absolute())} if trust.ca else {}
    return {environment.FARM_URL: ",".join(addresses), **ca}


def _own_variables(message: Run) -> dict[str, str]:
    """Return what an array's instance and a gang's member are told: who it is of how many, and where they meet."""
    spec = message.specification
    own = {INDEX: str(spec.index)} if spec.index is not None else {}
    if message.world == 1:
        return own
    return own | {
        "DTF_FARM_RANK": str(message.rank),
        "DTF_FARM_WORLD": str(message.world),
        "MASTER_ADDR": message.host,
        "MASTER_PORT": str(message.port),
    }


def _reads_input(message: Run) -> bool:
    """Whether an attempt has a standard input; of a gang its first member."""
    return bool(message.specification.stdin) and message.rank == 0
