"""`Preparation`: what an attempt needs before its command can start: its order, its secrets, its files.

Called in threads of the worker's pool, and of its executor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.messages import Run
from dtf_lightning.farm.rules.needs import DEFAULT_NEED
from dtf_lightning.farm.sources import unpack
from dtf_lightning.farm.worker.caches.inputs import InputCache
from dtf_lightning.farm.worker.orders import AttemptOrder
from dtf_lightning.farm.worker.service.secret_files import SecretFiles


class Preparation:
    """Thread-safe.

    Args:
        connection: to the farm.
        inputs: where files are kept for the next attempt.
        secrets: the worker's.
    """

    def __init__(self, connection: Connection, inputs: InputCache, secrets: SecretFiles) -> None:
        self._connection = connection
        self._inputs = inputs
        self._secrets = secrets

    def labels(self) -> tuple[str, ...]:
        """Return what the worker offers beside its machine: its secrets, by their names."""
        return self._secrets.labels()

    def order(self, message: Run) -> AttemptOrder:
        """Return what the executor is to run. Raises `SettingsError` for what cannot be run here."""
        spec = message.specification
        needs = spec.needs or (DEFAULT_NEED,)
        if message.alternative >= len(needs):
            raise SettingsError(f"the task has {len(needs)} needs, and was placed by number {message.alternative + 1}")
        return AttemptOrder(
            task=message.task,
            number=message.number,
            revision=message.revision,
            command=spec.command,
            environment=spec.environment,
            timeout=spec.timeout,
            amounts=needs[message.alternative].amounts,
            folder=spec.folder,
            artifacts=spec.artifacts,
            rank=message.rank,
            own=_own_variables(message),
            secrets=self._secrets.values(spec.secrets),
        )

    def files(self, message: Run) -> Callable[[Path], None] | None:
        """Return what brings an attempt's files into its workspace; `None` if it has none."""
        digest = message.specification.source
        return (lambda workspace: self._bring_source(digest, workspace)) if digest else None

    def _bring_source(self, digest: str, workspace: Path) -> None:
        with self._inputs.hold(digest, lambda file: self._fetch(digest, file)) as archive:
            unpack(archive, workspace)

    def _fetch(self, digest: str, file: BinaryIO) -> None:
        _, chunks = self._connection.stream(f"/api/sources/{digest}")
        for chunk in chunks:
            file.write(chunk)


def _own_variables(message: Run) -> dict[str, str]:
    """Return what a gang's member is told: who it is of how many, and where they meet (torch's names for that)."""
    if message.world == 1:
        return {}
    return {
        "DTF_FARM_RANK": str(message.rank),
        "DTF_FARM_WORLD": str(message.world),
        "MASTER_ADDR": message.host,
        "MASTER_PORT": str(message.port),
    }
