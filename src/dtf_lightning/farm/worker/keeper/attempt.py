"""`KeptAttempt` is one attempt's processes: it starts them, moves what they print and read, signals and counts them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess

from dtf_lightning.clock import Clock
from dtf_lightning.farm.worker.folders import AttemptFolder
from dtf_lightning.farm.worker.keeper import family
from dtf_lightning.farm.worker.keeper.cgroups import RLIMIT, Hierarchy
from dtf_lightning.farm.worker.keeper.course import Action, Course, could_not_start
from dtf_lightning.farm.worker.keeper.hardware_metrics import Series
from dtf_lightning.farm.worker.keeper.inherited import inherited
from dtf_lightning.farm.worker.keeper.messages import End, Start
from dtf_lightning.farm.worker.keeper.streams import Input, Output


class KeptAttempt:
    """One attempt, from its start on.

    Raises `OSError` if its log cannot be made.
    """

    def __init__(self, request: Start, folder: AttemptFolder, hierarchy: Hierarchy, clock: Clock) -> None:
        self.request = request
        self.started = clock.wall()
        self.output = Output(folder.log, request.secrets, request.log_limit)
        self.input = Input(folder.stdin) if request.stdin else None
        self.course = Course(
            started=clock.monotonic(), timeout=request.timeout, grace=request.grace, memory=request.memory
        )
        self.orphans: set[int] = set()
        """Those of its processes that the keeper has become the parent of."""
        self.pid = 0
        """Of its first process; 0 if it could not be started."""
        self.announced = 0
        """Length of the log that the worker was told."""
        self._clock = clock
        self._series = Series(folder.hardware_metrics, request.sample, clock.monotonic())
        self._group = hierarchy.make()
        self._cpu_seconds = 0.0
        self._peak_memory = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def confinement(self) -> str:
        return RLIMIT if self._group is None else f"cgroup v{self._group.version}"

    @property
    def watched_closely(self) -> bool:
        """Whether only our own looks hold it to its memory limit."""
        return self.request.memory is not None and self._group is None

    def start(self) -> End | None:
        """Start it; the end of one that could not be started."""
        request = self.request
        self._limit_group()
        try:
            with inherited(request.cpus):
                self._process = subprocess.Popen(
                    request.command,
                    stdin=subprocess.DEVNULL if self.input is None else self.input.reader,
                    stdout=self.output.writer,
                    stderr=subprocess.STDOUT,
                    cwd=request.folder,
                    env=request.environment,
                    start_new_session=True,
                    preexec_fn=None if request.memory is None else self._limit,  # noqa: PLW1509 - the keeper has one thread
                )
        except OSError as error:
            code, reason = could_not_start(error, request.command[0], request.folder)
            return self._closed(kind="failed", reason=reason, exit_code=code)
        except (subprocess.SubprocessError, ValueError) as error:
            return self._closed(kind="failed", reason=f"it could not be started: {error}", exit_code=126)
        self.pid = self._process.pid
        self._gather()
        self.output.started()
        if self.input is not None:
            self.input.started()
        return None

    def _limit_group(self) -> None:
        """Where the kernel refuses a limit, there is rlimit."""
        if self._group is not None and self.request.memory is not None:
            try:
                self._group.limit(self.request.memory)
            except OSError:
                self._group.remove()
                self._group = None

    def _limit(self) -> None:
        """In the new process, before its program: a limit is on all that it will start. What does not work must not keep it from running."""
        memory = self.request.memory
        try:
            if self._group is not None:
                self._group.join()
            elif memory is not None:
                resource.setrlimit(resource.RLIMIT_DATA, (2 * memory, 2 * memory))
        except (OSError, ValueError) as error:
            os.write(2, f"[dtf] this attempt runs without all of its limits: {error}\n".encode())

    def _gather(self) -> None:
        """Where its cgroup has no limit to hold, it is joined a moment after the start, with what was started meanwhile."""
        if self._group is None or self.request.memory is not None:
            return
        waiting, taken = {self.pid}, set()
        while waiting:
            for pid in waiting:
                self._group.take(pid)
            taken |= waiting
            waiting = family.descendants({self.pid}).keys() - taken

    # --- its processes -----------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, int]:
        """Every process of it that has not ended, with its parent."""
        roots = self.orphans | ({self.pid} if self.course.first_runs and self.pid else set())
        found = dict.fromkeys(roots, os.getpid()) | family.descendants(roots)
        for pid in self._group.members() if self._group is not None else ():
            if pid not in found and (seen := family.status(pid)) is not None:
                found[pid] = seen[1]
        return {pid: parent for pid, parent in found.items() if family.is_alive(pid)}

    def owns(self, orphan: int) -> bool:
        """Whether a child of the keeper comes from this attempt: by its cgroup, its session or its mark."""
        if self._group is not None and orphan in self._group.members():
            return True
        seen = family.status(orphan)
        return (seen is not None and seen[2] == self.pid != 0) or family.carries(orphan, self.request.mark)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all of its processes, once to each."""
        if number is signal.SIGKILL and self._group is not None:
            self._group.kill()
        # Nobody has waited for a first process that runs: its number is still its group's.
        family.signal_all(self.processes(), number, group=self.pid if self.course.first_runs else 0)

    def waited_for(self, pid: int, wait_status: int, usage: resource.struct_rusage) -> None:
        """A process of it has ended, with this status and usage (its own, and of those that it has waited for)."""
        self._cpu_seconds += usage.ru_utime + usage.ru_stime
        self._peak_memory = max(self._peak_memory, usage.ru_maxrss * 1024)
        self.orphans.discard(pid)
        if pid == self.pid and self._process is not None:
            self._process.returncode = os.waitstatus_to_exitcode(wait_status)  # it must not wait itself
            self.course.first_ended(wait_status)

    def look(self) -> None:
        """Sample what it takes, where that is due; note what its processes hold together; more than they may, or a death for that, is its end."""
        processes = self.processes()
        held = sum(map(family.resident, processes))
        if self._series.is_due(now := self._clock.monotonic()):
            spent = self._cpu_seconds + sum(map(family.cpu_seconds, processes))
            sample = {"cpu_seconds": round(spent, 2), "memory": held, "processes": len(processes)}
            self._series.add(now, {"at": self._clock.wall(), **sample})
        self._peak_memory = max(self._peak_memory, held)
        exceeded = self.watched_closely and held > (self.request.memory or 0)
        # Version 1 kills one process, and the others wait for it: the whole attempt goes, as in version 2.
        if exceeded or (self._group is not None and self.course.first_runs and self._group.oom_kills()):
            self.course.exceeded_memory()

    # --- its end -----------------------------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Do what is due now; whether it is over."""
        action = self.course.next(self._clock.monotonic(), self._count())
        if action is Action.ASK and self.course.asks_first_only:
            os.kill(self.pid, signal.SIGTERM)  # nobody has waited for it: the number is still its own
        elif action is Action.ASK:
            self.send(signal.SIGTERM)
        elif action is Action.KILL:
            self.send(signal.SIGKILL)
        return action is Action.FINISH

    def _count(self) -> int:
        """Of its living processes, as far as it matters: while all is well, nobody counts."""
        if self.course.first_runs or (not self.orphans and self._group is None):
            return 1 if self.course.first_runs else 0
        return len(self.processes())

    def close(self) -> End:
        """Its end, once it is over: what is left in its pipe goes to the log."""
        oom_kills = self._group.oom_kills() if self._group is not None else 0
        kind, reason = self.course.verdict(oom_kills=oom_kills)
        return self._closed(kind=kind, reason=reason)

    def _closed(self, *, kind: str, reason: str, exit_code: int | None = None) -> End:
        if self.input is not None:
            self.input.close()
        self.output.close()
        return End(
            status=self.course.status,
            exit_code=exit_code,
            kind=kind,
            reason=reason,
            started=self.started,
            ended=self._clock.wall(),
            cpu_seconds=self._cpu_seconds,
            peak_memory=self._peak_memory,
            log_bytes=self.output.size,
        )

    def remove_group(self) -> bool:
        """Remove its cgroup; `False`: something is still in it."""
        return self._group is None or self._group.remove()
