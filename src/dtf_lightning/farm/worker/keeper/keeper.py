"""`Keeper` is the parent of a worker's attempts: it starts and ends them, and notes how they ended.

Rules that this file guards:

* it outlives the worker: attempts go on while the worker is started anew, and how they ended is on disk before anybody
  is told. Only where no worker comes within `patience` does it end them, so that nothing runs for nobody;
* it ends with its last attempt once there is no worker, and leaves no process behind, whatever attempts have started;
* it never waits for its worker: what the worker does not take is kept, in one message for each attempt.

It has one thread, so that it may fork.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from dtf_lightning.clock import Clock, SystemClock, poll_until
from dtf_lightning.farm.worker.folders import AttemptFolder, WorkerFolders
from dtf_lightning.farm.worker.keeper import family
from dtf_lightning.farm.worker.keeper.attempt import KeptAttempt
from dtf_lightning.farm.worker.keeper.cgroups import Hierarchy
from dtf_lightning.farm.worker.keeper.messages import (
    Complete,
    End,
    Ended,
    Feed,
    Grown,
    Hello,
    Message,
    Quit,
    Start,
    Started,
    Stop,
    end_to_json,
)
from dtf_lightning.farm.worker.keeper.streams import Input
from dtf_lightning.farm.worker.keeper.worker_line import WorkerLine
from dtf_lightning.whole_files import write_whole

log = logging.getLogger(__name__)

SAMPLE, CLOSE_SAMPLE = 1.0, 0.2
"""Seconds between two looks at the memory of attempts: where cgroups hold them to their limit, and where we do."""
GROUPS_PATIENCE = 2.0
"""Seconds at the end for cgroups whose last process the kernel has not let go yet; it takes milliseconds."""
NOTICE = 0.02
"""Seconds between two notices of a log that grows."""


class Keeper:
    """Serve one worker at a time.

    Args:
        folder: the worker's.
        worker: the socket of the worker that has started us.
        listener: where a worker that is started later finds us.
        patience: seconds for which attempts run without a worker.
        hierarchy: where attempts get their cgroups.
    """

    def __init__(
        self,
        folder: Path,
        worker: socket.socket,
        listener: socket.socket,
        *,
        patience: float,
        hierarchy: Hierarchy,
        clock: Clock | None = None,
    ) -> None:
        self._folders = WorkerFolders(folder)
        self._clock = clock or SystemClock()
        self._hierarchy = hierarchy
        self._patience = patience
        self._selector = selectors.DefaultSelector()
        self._attempts: dict[str, KeptAttempt] = {}
        self._unwritten: dict[str, End] = {}
        """Ends that the disk had no room for."""
        self._strays: dict[int, set[str]] = {}
        """Children that carry no mark -> the attempts that may have started them."""
        self._groups: list[KeptAttempt] = []
        """Attempts that are over, whose cgroups could not be removed yet."""
        self._wishes: deque[Message] = deque()
        self._line: WorkerLine | None = None
        self._alone_since = self._next_look = self._next_notice = self._clock.monotonic()
        self._quitting = False
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        self._attach(worker)

    def run(self) -> None:
        """Until the worker says `Quit`, or has gone and nothing runs."""
        with contextlib.closing(self._selector), self._signals():
            while not self._is_done():
                for key, _ in self._selector.select(self._wait()):
                    if self._selector.get_map().get(key.fd) is key:
                        key.data()
                self._turn()
            self._end_strays(everything=True)
            with contextlib.suppress(TimeoutError):  # the next keeper on this folder removes them
                poll_until(self._groups_removed, GROUPS_PATIENCE, "the kernel to let go of cgroups")
            if self._line is not None:
                self._line.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Children that end wake us; SIGTERM is `Quit`. Handlers, and not SIG_IGN, which attempts would inherit."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            end.setblocking(False)
        # Caught, not ignored: what is ignored stays so over an exec (POSIX), thus for the commands of tasks. A worker that
        # was started with `nohup ... &` ignores SIGHUP, SIGINT and SIGQUIT.
        ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
        for number in {signal.SIGCHLD, signal.SIGINT, signal.SIGHUP, *ignored}:
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._wishes.append(Quit()))
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, lambda: reader.recv(4096))
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            reader.close()
            writer.close()

    def _is_done(self) -> bool:
        return not self._attempts and (self._quitting or (self._line is None and not self._unwritten))

    def _wait(self) -> float | None:
        """Seconds until something is due although nothing happens; `None`: nothing is."""
        moments = [due for attempt in self._attempts.values() if (due := attempt.course.deadline()) is not None]
        now = self._clock.monotonic()
        if self._attempts or self._unwritten or self._groups or self._strays:
            moments.append(self._next_look)
        if self._line is None:
            moments.append(self._alone_since + self._patience)
        if self._line is not None and any(it.output.size != it.announced for it in self._attempts.values()):
            moments.append(max(self._next_notice, now if self._line.is_idle else now + NOTICE))
        return max(0.0, min(moments) - now) if moments else None

    def _turn(self) -> None:
        """After every event: everything that can have become due."""
        while self._wishes:
            self._do(self._wishes.popleft())
        if self._line is None and self._clock.monotonic() >= self._alone_since + self._patience:
            self._stop_all("lost", f"ended because no worker had come back for it within {self._patience:g} s")
        self._reap()
        self._find_owners()
        self._look()
        for name, attempt in list(self._attempts.items()):
            if attempt.advance():
                self._unregister(attempt)
                self._finish(name, attempt, attempt.close())
        self._end_strays()
        self._announce()

    # --- the worker --------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            self._attach(listener.accept()[0])

    def _attach(self, connection: socket.socket) -> None:
        """Serve this worker from now on, in the place of an earlier one."""
        if self._line is not None:
            self._line.close()
        self._line = WorkerLine(connection, self._selector, self._wishes.append, self._worker_gone)
        self._say(Hello(confinement=self._hierarchy.confinement))
        for name, attempt in self._attempts.items():
            self._say(Started(name=name, at=attempt.started, confinement=attempt.confinement))
            attempt.announced = -1
        for name, end in self._unwritten.items():
            self._say(Ended(name=name, end=end))
        self._say(Complete())

    def _worker_gone(self) -> None:
        self._line, self._alone_since = None, self._clock.monotonic()

    def _say(self, message: Message) -> None:
        if self._line is not None:
            self._line.say(message)

    def _announce(self) -> None:
        """Tell how long logs are, now and then, where the worker has taken all that was said before."""
        now = self._clock.monotonic()
        if self._line is None or not self._line.is_idle or now < self._next_notice:
            return
        for name, attempt in self._attempts.items():
            if attempt.output.size != attempt.announced:
                attempt.announced, self._next_notice = attempt.output.size, now + NOTICE
                self._say(Grown(name=name, size=attempt.announced))

    def _do(self, wish: Message) -> None:
        match wish:
            case Start():
                self._start(wish)
            case Feed(name=name, size=size, complete=complete):
                if (attempt := self._attempts.get(name)) is not None and attempt.input is not None:
                    self._feed(attempt, lambda wanted: wanted.feed(size, complete))
            case Stop(name=name, kind=kind, reason=reason, grace=grace):
                if name in self._attempts:
                    self._attempts[name].course.stop(kind, reason, grace)
            case Quit():
                self._quitting = True
                self._stop_all("lost", "ended because its worker ended")
            case _:
                raise AssertionError(f"a worker says no such thing: {wish}")

    def _stop_all(self, kind: str, reason: str) -> None:
        for attempt in self._attempts.values():
            attempt.course.stop(kind, reason)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _start(self, request: Start) -> None:
        folder = AttemptFolder(self._folders.attempts / request.name)
        if request.name in self._attempts or request.name in self._unwritten or folder.end.exists() or self._quitting:
            return
        try:
            attempt = KeptAttempt(request, folder, self._hierarchy, self._clock)
        except OSError as error:
            now = self._clock.wall()
            reason = f"the worker could not prepare it: {error}"
            end = End(status=None, exit_code=None, kind="lost", reason=reason, started=now, ended=now)
            self._finish(request.name, None, end)
            return
        failed = attempt.start()
        if failed is not None:
            self._finish(request.name, attempt, failed)
            return
        if not self._attempts:
            self._next_look = self._clock.monotonic()
        self._attempts[request.name] = attempt
        self._selector.register(attempt.output.reader, selectors.EVENT_READ, lambda: self._pump(attempt))
        self._say(Started(name=request.name, at=attempt.started, confinement=attempt.confinement))

    def _pump(self, attempt: KeptAttempt) -> None:
        if not attempt.output.pump():
            self._selector.unregister(attempt.output.reader)

    def _unregister(self, attempt: KeptAttempt) -> None:
        """Before its descriptors are closed: their numbers will be others'."""
        for file in (attempt.output.reader, -1 if attempt.input is None else attempt.input.writer):
            if file >= 0 and file in self._selector.get_map():
                self._selector.unregister(file)

    def _feed(self, attempt: KeptAttempt, feed: Callable[[Input], object]) -> None:
        """Move standard input, now and whenever there is room for more."""
        wanted = attempt.input
        assert wanted is not None
        file = wanted.writer
        if file < 0:
            return
        feed(wanted)
        registered = file in self._selector.get_map()
        if wanted.wants_to_write and not registered:
            self._selector.register(file, selectors.EVENT_WRITE, lambda: self._feed(attempt, lambda it: it.pump()))
        elif registered and not wanted.wants_to_write:
            self._selector.unregister(file)

    def _finish(self, name: str, attempt: KeptAttempt | None, end: End) -> None:
        self._attempts.pop(name, None)
        if attempt is not None and not attempt.remove_group():
            self._groups.append(attempt)
        self._unwritten[name] = end
        self._write_ends()
        if attempt is not None:
            self._say(Grown(name=name, size=end.log_bytes))
        self._say(Ended(name=name, end=end))

    def _write_ends(self) -> None:
        for name, end in list(self._unwritten.items()):
            folder = AttemptFolder(self._folders.attempts / name)
            try:
                if folder.path.exists():  # else the worker has heard of it and removed all
                    write_whole(folder.end, end_to_json(end))
                del self._unwritten[name]
            except OSError as error:
                log.warning("the end of attempt %s cannot be written yet: %s", name, error)

    def _reap(self) -> None:
        """Take note of every child that has ended. Whose it was is asked before it is waited for, and forgotten."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            attempts = self._attempts.values()
            owner = next((it for it in attempts if pid == it.pid or pid in it.orphans), None)
            owner = owner or next((it for it in attempts if it.owns(pid)), None)
            _, wait_status, usage = os.wait4(pid, 0)
            self._strays.pop(pid, None)
            if owner is not None:
                owner.waited_for(pid, wait_status, usage)

    def _find_owners(self) -> None:
        """Give every child that is not the first process of an attempt to the attempt that it comes from."""
        now = self._clock.monotonic()
        if now < self._next_look and all(attempt.course.first_runs for attempt in self._attempts.values()):
            return
        known = self._strays.keys() | {pid for it in self._attempts.values() for pid in ({it.pid} | it.orphans)}
        for pid in family.children(os.getpid()) - known:
            owner = next((attempt for attempt in self._attempts.values() if attempt.owns(pid)), None)
            if owner is not None:
                owner.orphans.add(pid)
            elif family.is_alive(pid):
                self._strays[pid] = set(self._attempts)

    def _look(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_look:
            return
        closely = False
        for attempt in self._attempts.values():
            attempt.look()
            closely = closely or attempt.watched_closely
        self._next_look = now + (CLOSE_SAMPLE if closely else SAMPLE)
        self._groups_removed()
        self._write_ends()

    def _groups_removed(self) -> bool:
        """Remove the cgroups that could not be removed when their attempts ended; whether none is left."""
        self._groups = [attempt for attempt in self._groups if not attempt.remove_group()]
        return not self._groups

    def _end_strays(self, *, everything: bool = False) -> None:
        """Kill children that come from attempts which are over, and all below them."""
        for pid, suspects in self._strays.items():
            suspects.intersection_update(self._attempts)
            if everything or not suspects:
                for descendant, parent in (family.descendants({pid}) | {pid: os.getpid()}).items():
                    family.signal_exactly(descendant, parent, signal.SIGKILL)
