"""The tokens of a worker that has joined: kept in a file, and renewed when one is asked for that is half over.

Rules that this file guards:
- The file is its owner's alone, and is whole or not there.
- What is asked for is noted before it is asked: whoever is ended in between asks for the same again, which counts once.
- While a token is good and no coordinator answers, the worker goes on with it. Only a farm's "no" ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.farm.http import Connection, FarmRefused, FarmUnreachable
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.security.tokens import role_told
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.farm.worker.service.link import Refused
from dtf_lightning.whole_files import write_whole

log = logging.getLogger(__name__)

RENEWED = 0.5
"""Part of a token's life after which the next one is asked for."""
_NO = (401, 403, 409)
"""HTTP's codes by which a farm says that it does not take the worker."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What the file holds."""

    worker: str
    token: str = ""
    refresh: str = ""
    """Good once, for the next two."""
    got: float = 0.0
    """When these came, in seconds since the epoch by this machine's clock."""
    seconds: float = 0.0
    """For which `token` is good."""
    nonce: str = ""
    """Of a request whose answer has not come."""
    by: str = ""
    """Digest of the token to join with that the worker had then: with another one it looks whether these are still good."""


class Credentials:
    """Thread-safe; its methods wait for coordinators.

    Args:
        joining: a token to join with.
        worker: the worker's name.
        file: where its tokens are kept.
        urls: of coordinators.
    """

    def __init__(
        self,
        joining: str,
        worker: str,
        file: Path,
        urls: tuple[str, ...],
        *,
        trust: Trust | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._joining = joining
        self._by = hashlib.sha256(joining.encode()).hexdigest()
        self._file = file
        self._urls, self._trust = urls, trust
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._kept = self._read(worker)

    def token(self) -> str:
        """Return a token that is good, the next one where the last is half over.

        Raises `Refused` where the farm does not take the worker, `FarmUnreachable` where no coordinator answers and no
        token is good any more, and `OSError` where the file cannot be written.
        """
        with self._lock:
            kept = self._kept
            age = self._clock.wall() - kept.got
            if kept.token and kept.by == self._by and 0 <= age < RENEWED * kept.seconds:
                return kept.token
            try:
                self._next()
            except (FarmUnreachable, FarmRefused) as error:
                if not kept.token or not self._kept.token or age >= kept.seconds:
                    raise
                log.warning("the worker's token cannot be renewed yet: %s", error)
            return self._kept.token

    def _next(self) -> None:
        """Get the next tokens: by those that are kept, or by joining."""
        refusal = ""
        if self._kept.refresh:
            try:
                self._ask("/api/refresh", self._kept.refresh)
                return
            except FarmRefused as error:
                if error.status not in _NO:
                    raise
                refusal = f"{error}; and "
                self._keep(_Kept(worker=self._kept.worker))
        try:
            self._ask("/api/join", self._joining)
        except FarmRefused as error:
            if error.status not in _NO:
                raise
            raise Refused(f"the farm does not take the worker {self._kept.worker!r}: {refusal}{error}") from error

    def _ask(self, path: str, token: str) -> None:
        if not self._kept.nonce:
            self._keep(replace(self._kept, nonce=secrets.token_hex(16)))
        connection = Connection(self._urls, token, trust=self._trust)
        try:
            told = connection.ask("POST", path, {"worker_id": self._kept.worker, "nonce": self._kept.nonce})
        finally:
            connection.close()
        self._keep(
            _Kept(
                worker=self._kept.worker,
                token=str(told["token"]),
                refresh=str(told["refresh"]),
                got=self._clock.wall(),
                seconds=float(told["seconds"]),
                by=self._by,
            )
        )

    def _keep(self, kept: _Kept) -> None:
        write_whole(self._file, json.dumps(asdict(kept)).encode(), durable=True, private=True)
        self._kept = kept

    def _read(self, worker: str) -> _Kept:
        """Return what an earlier process has kept; nothing where that was another worker's, or cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            kept = _Kept(**json.loads(self._file.read_text()))
            if kept.worker == worker:
                return kept
        return _Kept(worker=worker)


def worker_token(
    given: str, worker: str, folder: Path, urls: tuple[str, ...], trust: Trust | None = None
) -> str | Callable[[], str]:
    """Return a worker's token; for one to join with what returns the worker's own, once it has joined.

    Raises as `Credentials.token`. `folder`: the worker's, where its own tokens are kept.
    """
    if role_told(given) != Role.JOIN.value:
        return given
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    credentials = Credentials(given, worker, folder / "credentials.json", urls, trust=trust)
    credentials.token()  # what is wrong is told before anything else
    return credentials.token
