"""Preemption notices: a cloud says that it takes a machine away, before it sends SIGTERM or nothing at all.

A source is any callable that returns `None`, or a `Notice` once there is one; the agent polls it and leaves gracefully
with the time that is left. One source is here, for the two common HTTP forms: 404 until the notice and then JSON with a
time (EC2's spot/instance-action), and the words FALSE and TRUE (Compute Engine's instance/preempted).
"""

from __future__ import annotations

import importlib
import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urljoin

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import SettingsError

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 2.0
"""Seconds that a metadata server has for an answer; it needs milliseconds."""
TOKEN_PATH = "/latest/api/token"


@dataclass(frozen=True)
class Notice:
    """An announcement that this machine is about to be taken away."""

    reason: str
    seconds_left: float | None = None
    """The seconds until then; `None` if the source does not say."""


NoticeSource = Callable[[], Notice | None]


class HttpNotice:
    """A metadata server over HTTP. Raises `OSError` if it does not answer, `ValueError` for an answer in no known form."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self._url = url
        self._clock = clock or SystemClock()
        self._headers = {"Metadata-Flavor": "Google"}  # the one server insists on it, the others ignore it

    def __call__(self) -> Notice | None:
        try:
            return self._read(self._ask())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            if error.code == 401 and "X-aws-ec2-metadata-token" not in self._headers:
                return self._with_token()
            if error.code == 401:
                del self._headers["X-aws-ec2-metadata-token"]  # expired: the next poll gets a new one
            raise

    def _with_token(self) -> Notice | None:
        request = urllib.request.Request(
            urljoin(self._url, TOKEN_PATH), method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        )
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT) as answer:
            self._headers["X-aws-ec2-metadata-token"] = answer.read(4096).decode()
        return self()

    def _ask(self) -> str:
        request = urllib.request.Request(self._url, headers=self._headers)
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT) as answer:
            return str(answer.read(4096).decode()).strip()

    def _read(self, text: str) -> Notice | None:
        if text.upper() in ("", "FALSE", "NONE"):
            return None
        if text.upper() == "TRUE":
            return Notice(f"preemption notice from {self._url}")
        action = json.loads(text)
        if not isinstance(action, dict) or "action" not in action:
            raise ValueError(f"expected 404, TRUE, FALSE or JSON with an action, got {text[:200]!r}")
        left = None
        if "time" in action:
            left = max(0.0, datetime.fromisoformat(action["time"]).timestamp() - self._clock.wall())
        return Notice(f"preemption notice from {self._url}: {action['action']}", left)


def notice_source(spec: str) -> NoticeSource:
    """Return the source that the setting `notice` names: a URL, or `package.module:callable`.

    Raises `SettingsError` for anything else.
    """
    if spec.startswith(("http://", "https://")):
        return HttpNotice(spec)
    module, _, name = spec.partition(":")
    try:
        source: NoticeSource = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"notice={spec}: expected a URL (http://...) or package.module:callable, and cannot import this: {error}"
        ) from error
    if not callable(source):
        raise SettingsError(f"notice={spec}: expected a callable that returns None or a Notice, got {source!r}")
    return source


class NoticePoller:
    """A thread that asks a source until there is a notice.

    Args:
        leave: called once, with the reason and the seconds that are left.
    """

    def __init__(self, source: NoticeSource, interval: float, leave: Callable[[str, float | None], None]) -> None:
        self._source = source
        self._interval = interval
        self._leave = leave
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True, name="dtf-notice")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2 * REQUEST_TIMEOUT)

    def _poll(self) -> None:
        complained = False
        while not self._closing.is_set():
            try:
                notice = self._source()
            except Exception as error:  # the source is somebody else's, and no reason to stop training
                if not complained:
                    log.warning("the source of preemption notices does not answer (%r); asking on", error)
                complained = True
                notice = None
            if notice is not None:
                self._leave(notice.reason, notice.seconds_left)
                return
            self._closing.wait(self._interval)
