"""`Executor` runs attempts: it hands them to its keeper, follows their logs, and tells how they ended.

Rules that this file guards:

* an attempt is started at most once, whatever is ordered how often; its folder says so also after a restart;
* every attempt that was started is told to have ended, once by each worker process until its outcome is in the `Spool`:
  by this process, or by the next one on the same folder, which goes on with those that still run;
* devices are free before the end is told, and not before the attempt's processes are gone;
* nothing waits for whoever is told: logs have a thread of their own, and every end has one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.errors import DtfError, PeerError
from dtf_lightning.farm.worker.allotment import CPU, Allotment, Ledger, Shortage
from dtf_lightning.farm.worker.folders import AttemptFolder, WorkerFolders, remove_tree
from dtf_lightning.farm.worker.keeper.course import KILL_PATIENCE
from dtf_lightning.farm.worker.keeper.hardware_metrics import INTERVAL, DeviceSampler
from dtf_lightning.farm.worker.keeper.messages import (
    End,
    Ended,
    Feed,
    Grown,
    Hello,
    Message,
    Start,
    Started,
    Stop,
    end_from_json,
    end_to_json,
)
from dtf_lightning.farm.worker.keeper_link import KeeperLink
from dtf_lightning.farm.worker.logs import KeptLogs, LogTeller, is_forgotten, stored_bytes
from dtf_lightning.farm.worker.masks.mask import Mask
from dtf_lightning.farm.worker.orders import AttemptEnded, AttemptOrder, AttemptStarted, Told
from dtf_lightning.farm.worker.outcomes import outcome, working_folder
from dtf_lightning.farm.worker.variables import MARK, attempt_variables, cores
from dtf_lightning.processes.watchdog import end_marked
from dtf_lightning.whole_files import write_whole

log = logging.getLogger(__name__)

LOG_LIMIT = 1 << 30
"""Bytes of a log."""
LOG_FIRST = 1.0
"""Seconds for which an end waits for its log to be told, so that it comes after it where nothing is slow."""
LOG_PATIENCE = 7 * 86400.0
"""Seconds after which a log that nobody stores is dropped, once its attempt is recorded."""
MEBIBYTE = 1 << 20


@dataclass
class _Live:
    """An attempt that has not ended for us yet."""

    order: AttemptOrder
    folder: AttemptFolder
    mark: str
    allotment: Allotment
    temporary: Path
    fed: int = 0
    """Bytes of its standard input."""
    fed_all: bool = False
    handed_over: bool = False
    """Whether the keeper has it."""
    stop: Stop | None = None
    """Why it is to end, if that was said before the keeper had it."""
    ended: bool = False


class Executor:
    """Run attempts. Thread-safe; has threads of its own.

    Args:
        folder: the worker's; another process must not use it. `Spool` gets the same.
        devices: resource -> names of the devices that are shared out among attempts, such as `{"gpu": ("nvidia/0",)}`;
            the names under `cpu` are numbers of cores. Of resources without names, only the scheduler keeps count.
        tell: is called from several threads at once with what happens. What it raises is logged. Output may be told after
            the end where it is slow: all has come with `AttemptOutcome.log_bytes` bytes.
        cache: where caches lie; `None`: in the folder.
        patience: seconds for which attempts go on without a worker, if this process ends without `close`.
        log_limit: bytes of an attempt's log; what it prints beyond is dropped and counted.
        sample: seconds between two samples of what an attempt takes, at first.
        recall: returns the secrets of an attempt that an earlier process has started; may raise `DtfError`.
        cgroups: whether attempts are held to their memory limits by cgroups where that can be.

    Raises `SettingsError` if another worker uses the folder, `PeerError` if the keeper does not start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        devices: Mapping[str, tuple[str, ...]],
        tell: Callable[[Told], object],
        cache: Path | None = None,
        patience: float = 60.0,
        log_limit: int = LOG_LIMIT,
        sample: float = INTERVAL,
        recall: Callable[[AttemptOrder], Mapping[str, str]] | None = None,
        cgroups: bool = True,
    ) -> None:
        self._folders = WorkerFolders(folder, cache)
        self._lock_file = self._folders.lock()
        self._tell, self._log_limit = tell, log_limit
        self._recall = recall or (lambda order: order.secrets)
        self._lock = threading.Lock()
        self._no_attempt = threading.Condition(self._lock)
        self._live: dict[str, _Live] = {}
        self._threads: set[threading.Thread] = set()
        self._ledger = Ledger(devices)
        self._logs = LogTeller(tell)
        self._link = KeeperLink(
            self._folders, patience=patience, cgroups=cgroups, hear=self._hear, gone=self._keeper_gone
        )
        self._closing = False
        self._sampler = DeviceSampler(
            sample,
            [name for names in devices.values() for name in names],
            self._devices_of_attempts,
            clock=lambda: (time.time(), time.monotonic()),
        )
        self.confinement = ""
        """What holds attempts to their memory limit: `cgroup v2`, `cgroup v1` or `rlimit`."""
        try:
            self._go_on()
        except BaseException:
            self._end_threads()
            raise

    def start(self, order: AttemptOrder, prepare: Callable[[Path], object] | None = None) -> None:
        """Start an attempt; one that was started already, and be it by an earlier process, is not started again.

        What goes wrong is told as its end. Does nothing once this object is closed.

        Args:
            order: the attempt.
            prepare: puts what the command needs into its workspace, in a thread of its own and before the command is
                started. An attempt whose preparation raises is lost, with the error in its reason.
        """
        folder = self._folders.attempt(order.task, order.revision)
        with self._lock:
            if self._closing or folder.name in self._live or folder.order.exists():
                return
            try:
                allotment = self._ledger.allot(order.amounts)
            except Shortage as error:
                self._refuse(order, folder, str(error))
                return
            live = _live(order, folder, allotment)
            try:
                self._make_folder(live)
            except OSError as error:
                self._ledger.give_back(allotment)
                remove_tree(live.temporary)
                self._refuse(order, folder, _unprepared(error))
                return
            self._live[folder.name] = live
            older = [it for it in self._live.values() if it.order.task == order.task and it is not live]
        for it in older:
            self.cancel(order.task, it.order.revision, "a newer attempt at its task has come")
        if prepare is None:
            self._begin(live)
        else:
            with self._lock:
                self._in_thread(lambda: self._begin(live, prepare))

    def feed(self, task: str, revision: int, data: bytes | None) -> None:
        """Give an attempt that was ordered with `stdin` more to read; `None`: that was all. Never waits for it."""
        with self._lock:
            live = self._live.get(self._folders.attempt(task, revision).name)
            if live is None or live.ended or not live.order.stdin or self._closing:
                return
            live.fed_all = live.fed_all or data is None
            try:
                with live.folder.stdin.open("ab") as file:
                    file.write(data or b"")
                    live.fed = file.tell()
            except OSError as error:
                log.warning("the standard input of task %s ends here: %s", task, error)
                live.fed_all = True
            if live.handed_over:
                self._link.say(Feed(name=live.folder.name, size=live.fed, complete=live.fed_all))

    def reading(self) -> list[tuple[str, int]]:
        """Return the attempts that have not been given all that they are to read, by task and revision."""
        with self._lock:
            live = [it for it in self._live.values() if it.order.stdin and not it.ended and not it.fed_all]
            return [(it.order.task, it.order.revision) for it in live]

    def fed(self, task: str, revision: int) -> int | None:
        """Return how many bytes an attempt was given to read; `None` if it has ended, or reads nothing more."""
        with self._lock:
            live = self._live.get(self._folders.attempt(task, revision).name)
            over = live is None or live.ended or live.fed_all or not live.order.stdin or self._closing
            return None if live is None or over else live.fed

    def cancel(self, task: str, revision: int, reason: str) -> None:
        """End an attempt: SIGTERM to all its processes, SIGKILL after its grace. Does nothing if there is no such attempt."""
        text = f"cancelled: {reason}" if reason else "cancelled"
        self._stop(Stop(name=self._folders.attempt(task, revision).name, kind="cancelled", reason=text))

    def yield_device(self, task: str, revision: int, reason: str, deadline: float) -> None:
        """End a training's part: SIGTERM to its first process alone, SIGKILL to all after `deadline` seconds."""
        name = self._folders.attempt(task, revision).name
        self._stop(Stop(name=name, kind="yielded", reason=reason, grace=deadline))

    def running(self) -> Mapping[str, int]:
        """Task -> revision of its attempt that has not ended yet; the newest where an older one is being ended."""
        with self._lock:
            live = sorted(self._live.values(), key=lambda it: it.order.revision)
            return {it.order.task: it.order.revision for it in live}

    def has(self, task: str, revision: int) -> bool:
        """Whether this attempt has not ended yet."""
        with self._lock:
            return self._folders.attempt(task, revision).name in self._live

    def close(self, grace: float) -> None:
        """End all attempts, which are told as lost, and the keeper. What `tell` does not take in time is on disk. Idempotent."""
        if self._lock_file < 0:
            return
        with self._lock:
            self._closing = True
            names = list(self._live)
        for name in names:
            self._stop(Stop(name=name, kind="lost", reason="ended because its worker ended", grace=grace))
        with self._no_attempt:
            if not self._no_attempt.wait_for(lambda: not self._live, grace + KILL_PATIENCE + LOG_FIRST + 5.0):
                log.error("these attempts did not end: %s", sorted(self._live))
        self._leave(end_keeper=True)

    def leave(self) -> None:
        """Let attempts run on with the keeper, for the next worker on this folder. Idempotent."""
        with self._lock:
            self._closing = True
        self._leave(end_keeper=False)

    def _devices_of_attempts(self) -> dict[Path, tuple[str, ...]]:
        """Return, for each attempt that runs and has devices, the file of its series, and their names."""
        with self._lock:
            found = {}
            for live in self._live.values():
                names = tuple(name for resource, parts in live.allotment.items() if resource != CPU for name in parts)
                if names and live.handed_over and not live.ended:
                    found[live.folder.hardware_metrics] = names
            return found

    def _stop(self, stop: Stop) -> None:
        with self._lock:
            live = self._live.get(stop.name)
            if live is not None and live.handed_over:
                self._link.say(stop)
            elif live is not None:
                live.stop = live.stop or stop

    def _leave(self, *, end_keeper: bool) -> None:
        self._link.close(end_keeper=end_keeper)
        self._end_threads()

    def _end_threads(self) -> None:
        self._sampler.close()
        self._logs.close()
        while True:
            with self._lock:
                thread = next((it for it in self._threads if it is not threading.current_thread()), None)
                self._threads.discard(thread)
            if thread is None:
                break
            thread.join(LOG_FIRST + 5.0)
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    # --- starting ----------------------------------------------------------------------------------------------------

    def _begin(self, live: _Live, prepare: Callable[[Path], object] | None = None) -> None:
        try:
            if prepare is not None:
                prepare(live.folder.work)
        except Exception as error:
            log.warning("attempt %s could not be prepared", live.folder.name, exc_info=True)
            self._ended(live, _lost(_unprepared(error)))
            return
        self._logs.follow(live.folder)
        with self._lock:
            end = None if live.stop is None else _end(live.stop.kind, live.stop.reason)
            if end is None and not self._link.say(self._request(live)):
                end = _lost("the worker has no keeper that could start it")
            live.handed_over = end is None
            if end is None and (live.fed or live.fed_all):
                self._link.say(Feed(name=live.folder.name, size=live.fed, complete=live.fed_all))
        if end is not None:
            self._ended(live, end)

    def _make_folder(self, live: _Live) -> None:
        """Make its folder. It counts as started from the moment that its order is there."""
        live.folder.make()
        live.temporary.mkdir(mode=0o700)
        if live.order.stdin:
            live.folder.stdin.touch(0o600)
        if live.order.token:
            write_whole(live.folder.token, live.order.token.encode(), private=True)
        kept = {
            "order": live.order.kept_on_disk(),
            "mark": live.mark,
            "allotment": live.allotment,
            "temporary": str(live.temporary),
        }
        write_whole(live.folder.order, json.dumps(kept).encode())

    def _request(self, live: _Live) -> Start:
        order = live.order
        memory = order.amounts.get("memory")
        variables = attempt_variables(
            environment.for_child({}, without_prefix=MARK),
            order,
            folder=live.folder,
            temporary=live.temporary,
            cache=self._folders.cache,
            devices=self._ledger.devices,
            allotment=live.allotment,
            mark=live.mark,
        )
        return Start(
            name=live.folder.name,
            command=list(order.command),
            environment=variables,
            folder=str(working_folder(order, live.folder)),
            mark=f"{MARK}={live.mark}",
            timeout=order.timeout,
            grace=order.grace,
            memory=int(memory * MEBIBYTE) if memory else None,
            cpus=cores(live.allotment),
            secrets=[*order.secrets.values(), *filter(None, [order.token])],
            stdin=order.stdin,
            log_limit=self._log_limit,
            sample=self._sampler.interval,
        )

    def _refuse(self, order: AttemptOrder, folder: AttemptFolder, reason: str) -> None:
        """Tell that an attempt was not even started; `self._lock` is held."""
        live = _live(order, folder, {})
        self._live[folder.name] = live
        with contextlib.suppress(OSError):  # it is told now; only a worker that is started anew needs the folder
            self._make_folder(live)
        self._in_thread(lambda: self._ended(live, _lost(reason)))

    # --- going on where an earlier process has stopped ---------------------------------------------------------------

    def _go_on(self) -> None:
        """Find the keeper, and what became of the attempts whose outcome is not kept yet."""
        self._folders.remove_leftovers()
        KeptLogs(self._folders.path).drop(LOG_PATIENCE, time.time())
        kept = [live for folder in self._folders.all_attempts() if (live := self._kept(folder)) is not None]
        said = self._link.connect()
        running = {message.name for message in said if isinstance(message, Started)}
        for live in kept:
            self._live[live.folder.name] = live
            self._ledger.take(live.allotment)
            if live.folder.name in running:
                self._logs.follow(live.folder, stored_bytes(live.folder))
        for message in said:
            self._hear(message)
        self._link.listen()
        for live in kept:
            if live.folder.name not in running and not live.ended:
                self._in_thread(partial(self._ended_unseen, live))

    def _kept(self, folder: AttemptFolder) -> _Live | None:
        """An attempt of an earlier process; `None` if its outcome is in the spool, or nobody wants it any more."""
        if is_forgotten(folder) or self._folders.spooled(folder.task, folder.revision).exists():
            return None
        try:
            body = json.loads(folder.order.read_bytes())
            fed = folder.stdin.stat().st_size if folder.stdin.exists() else 0
            order = AttemptOrder.from_json(body["order"])
            temporary = Path(body["temporary"])
            return _Live(order, folder, body["mark"], body["allotment"], temporary, fed, handed_over=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.error("what attempt %s was cannot be read; it is removed: %r", folder.name, error)
            folder.remove()
            return None

    def _ended_unseen(self, live: _Live) -> None:
        self._ended(live, self._end_of(live))

    def _end_of(self, live: _Live) -> End:
        """How an attempt ended that no keeper has: as it was noted, else it is lost, and what is left of it is killed."""
        try:
            return end_from_json(live.folder.end.read_bytes())
        except (OSError, ValueError, TypeError):
            num_ended = end_marked(f"{MARK}={live.mark}".encode())
            left = f"; processes of it that were still there were killed: {num_ended}" if num_ended else ""
            end = _lost(f"nobody saw how it ended: the keeper of its processes had ended before it{left}")
            return replace(end, started=live.folder.order.stat().st_mtime)

    # --- what the keeper says ----------------------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        match message:
            case Hello(confinement=confinement):
                self.confinement = confinement
            case Grown(name=name, size=size):
                self._logs.grown(name, size)
            case Started(name=name, at=at, confinement=confinement) if (live := self._live.get(name)) is not None:
                order = live.order
                self._say(AttemptStarted(task=order.task, revision=order.revision, at=at, confinement=confinement))
            case Ended(name=name, end=end) if (live := self._live.get(name)) is not None:
                with self._lock:
                    self._in_thread(lambda: self._ended(live, end))

    def _keeper_gone(self) -> None:
        """The keeper was killed: its attempts are lost, and there is another one for the next."""
        with self._lock:  # until there is another one, nothing is handed over
            lost = [it for it in self._live.values() if it.handed_over and not it.ended]
            log.error("the keeper has ended; %d attempts are lost", len(lost))
            try:
                self._link.connect()
                self._link.listen()
            except (PeerError, OSError):
                log.exception("no keeper can be started: this worker runs nothing any more")
            for it in lost:
                self._in_thread(partial(self._ended_unseen, it))

    # --- the end -----------------------------------------------------------------------------------------------------

    def _in_thread(self, work: Callable[[], None]) -> None:
        """Do what may take long; `self._lock` is held, or nobody else has this object yet."""

        def do_it() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=do_it, name="farm-attempt-end", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _ended(self, live: _Live, end: End) -> None:
        """Note and tell the end of an attempt, once."""
        with self._lock:
            if live.ended:
                return
            live.ended = True
        try:
            if live.folder.path.exists() and not live.folder.end.exists():
                write_whole(live.folder.end, end_to_json(end))
        except OSError as error:
            log.warning("the end of attempt %s cannot be written: %s", live.folder.name, error)
        remove_tree(live.temporary)
        result = outcome(live.order, live.folder, end, self._mask_of(live))
        live.folder.token.unlink(missing_ok=True)
        self._logs.finish(live.folder.name, result.log_bytes, LOG_FIRST)
        with self._lock:
            self._ledger.give_back(live.allotment)
        order = live.order
        self._say(AttemptEnded(task=order.task, revision=order.revision, number=order.number, outcome=result))
        with self._lock:
            self._live.pop(live.folder.name, None)
            self._no_attempt.notify_all()

    def _mask_of(self, live: _Live) -> Mask | None:
        """Return what masks an attempt's secrets in what it has left; `None`: they are not known here any more."""
        order, file = live.order, live.folder.token
        try:
            token = [file.read_text()] if file.exists() else []
            known = order.secrets if order.secrets or not order.secret_names else self._recall(order)
            return Mask([*known.values(), *token])
        except (DtfError, OSError) as error:
            log.warning("the secrets of attempt %s cannot be had again: %s", order.task, error)
            return None

    def _say(self, told: Told) -> None:
        try:
            self._tell(told)
        except Exception:
            log.exception("nobody took that %s", told)


def _live(order: AttemptOrder, folder: AttemptFolder, allotment: Allotment) -> _Live:
    mark = uuid.uuid4().hex
    return _Live(order, folder, mark, allotment, Path(tempfile.gettempdir()) / f"dtf-{mark[:16]}")


def _unprepared(error: Exception) -> str:
    return f"the worker could not prepare it: {error}"


def _lost(reason: str) -> End:
    return _end("lost", reason)


def _end(kind: str, reason: str) -> End:
    """The end of an attempt that was not started."""
    now = time.time()
    return End(status=None, exit_code=None, kind=kind, reason=reason, started=now, ended=now)
