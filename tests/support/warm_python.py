"""Python programs that begin with everything heavy imported: forks instead of interpreters, 0.05 s instead of 4 s each.

`ForkServer.start` gives the first one, which runs real torchrun (or the demo) as `__main__`. What that program starts in
its turn, a training script or a torchrun, is forked as well, by its *nursery*: a process without threads that was forked
before the program began. Rules that this file keeps, so that neither side can tell such a process from one that was
executed:

* it is a child of the process that started it: the nursery forks twice, the process between ends, and the kernel gives
  the orphan to its nearest living ancestor that has asked to have orphans (`PR_SET_CHILD_SUBREAPER`);
* `/proc/PID/environ` shows its environment (the agents of restart mode know their workers by it): the server begins with
  an environment that has room, and each fork writes its own there;
* arguments, directory, search path, standard streams, signals and random seeds are those of a new interpreter.

Everything else is started as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import pickle
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from dtf_lightning.elastic.agent.restart.spare_process import become

ROOM_VARIABLE = "DTF_TEST_ROOM"
ROOM = 1 << 16
"""Bytes that a forked program's environment may have."""

PROGRAMS = {"torch.distributed.run": "torch.distributed.run", "dtf_lightning": "dtf_lightning.__main__"}
"""What may be started by name (`python -m NAME`), and the module whose `main` that is. These get a nursery."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ANSWER = struct.Struct("!i")


# --- being a program -------------------------------------------------------------------------------------------------


def program(arguments: list[str], environment: Mapping[str, str], directory: str, parent: int) -> None:
    """Be `python ARGUMENTS` in this fork, to its end; errors and `SystemExit` pass."""
    _be_new(environment, directory)
    if os.getppid() != parent:
        return  # who asked for it has ended, perhaps before its environment could be seen: nobody would end it
    try:
        _run(arguments, environment, directory)
    finally:
        # What an interpreter does at its end, but for freeing memory piece by piece, which takes seconds with torch.
        threading._shutdown()  # waits for threads that are no daemons
        atexit._run_exitfuncs()


def _run(arguments: list[str], environment: Mapping[str, str], directory: str) -> None:
    if arguments[0] == "-m":
        sys.path[0:1] = _search_path(directory, environment)
        module = importlib.import_module(PROGRAMS[arguments[1]])
        sys.argv = [str(module.__file__), *arguments[2:]]
        _Nursery().install()
        raise SystemExit(module.main())
    sys.path[0:1] = _search_path(str(Path(arguments[0]).resolve().parent), environment)
    sys.argv = list(arguments)
    # Not `runpy`, which clears the script's names before the process ends. An interpreter keeps them, and the difference is
    # seen: torch's DDP frees its last process group with the GIL held, for which a thread of gloo may wait.
    become(arguments[0])


def as_process(life: Callable[[], object]) -> NoReturn:
    """In a fork: live, and end with the exit code that an interpreter would have."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        life()
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  (there is an exception)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def die_with_parent(parent: int) -> None:
    """In a fork of `parent`, which forks in its main thread: be killed when it ends, also if it has ended by now."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    if os.getppid() != parent:
        os._exit(1)


def _be_new(environment: Mapping[str, str], directory: str) -> None:
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    _show(environment)
    tempfile.tempdir = None  # TMPDIR may be another
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    rank_zero = sys.modules.get("lightning_utilities.core.rank_zero")
    if rank_zero is not None:  # read when it is imported, for what only rank zero says
        rank_zero.rank_zero_only.rank = int(environment.get("RANK") or 0)


def _search_path(first: str, environment: Mapping[str, str]) -> list[str]:
    listed = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return [first, *(entry for entry in listed if entry not in sys.path)]


def _show(environment: Mapping[str, str]) -> None:
    """Write it where `/proc/self/environ` is read. The C library has copies of its own since `os.environ.update`."""
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, stop = int(fields[47]), int(fields[48])  # env_start and env_end, proc(5)
    assert len(text) <= stop - start, f"an environment of {len(text)} bytes, there is room for {stop - start}"
    ctypes.memmove(start, text.ljust(stop - start, b"\0"), stop - start)


# --- starting one ----------------------------------------------------------------------------------------------------


class Started:
    """A child that was not executed, as far as those who start processes look at a `Popen`."""

    def __init__(self, args: list[str], pid: int) -> None:
        self.args, self.pid = args, pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        while self.poll() is None:
            if not select.select([self._pidfd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """Forked before this process has a thread; ends with it."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen
        self._lock = threading.Lock()
        self._connection, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._connection.close()
            with contextlib.suppress(BaseException):
                _nurse(theirs)
            os._exit(0)
        theirs.close()

    def install(self) -> None:
        """From now on this process's programs come from here where they can."""
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

        subprocess.Popen = subprocess_handler.Popen = self.popen  # type: ignore[assignment,misc]

    def popen(self, args: Any, **options: Any) -> Any:
        """As `subprocess.Popen`."""
        arguments = _arguments(args)
        usual = {"env", "cwd", "stdin", "stdout", "stderr", "start_new_session"}
        streams = [options.get("stdout"), options.get("stderr")]
        if (
            arguments is None
            or options.keys() - usual
            or not options.get("start_new_session")
            or subprocess.PIPE in (*streams, options.get("stdin"))
        ):
            return self._popen(args, **options)
        out = _descriptor(streams[0], 1)
        err = out if streams[1] == subprocess.STDOUT else _descriptor(streams[1], 2)
        order = pickle.dumps(
            (
                arguments,
                dict(os.environ if options.get("env") is None else options["env"]),
                str(options.get("cwd") or Path.cwd()),
            )
        )
        with self._lock, _adopting():
            socket.send_fds(self._connection, [struct.pack("!I", len(order))], [out, err])
            self._connection.sendall(order)
            (pid,) = _ANSWER.unpack(_exactly(self._connection, _ANSWER.size))
            started = Started(list(args), pid)
        for stream in streams:
            if stream == subprocess.DEVNULL:
                os.close(out if stream is streams[0] else err)
        return started


def _arguments(args: Any) -> list[str] | None:
    """Those after the interpreter, if this is a program that can be forked."""
    if isinstance(args, str) or str(args[0]) != sys.executable:
        return None
    arguments = [str(argument) for argument in args[1:]]
    if arguments[:1] == ["-u"]:
        arguments = arguments[1:]
    if arguments[:1] == ["-m"] and arguments[1] in PROGRAMS:
        return arguments
    return arguments if arguments and arguments[0].endswith(".py") and Path(arguments[0]).exists() else None


def _descriptor(stream: Any, default: int) -> int:
    if stream is None:
        return default
    if stream == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_WRONLY)
    return stream if isinstance(stream, int) else int(stream.fileno())


@contextlib.contextmanager
def _adopting() -> Any:
    """Orphans among this process's descendants become its children meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError("the nursery is gone")
        data += piece
    return data


def _nurse(connection: socket.socket) -> None:
    """The nursery's own life."""
    parent = os.getppid()
    os.setsid()  # the terminal's signals, and those to the program's group, are not for it
    while True:
        head, descriptors, _, _ = socket.recv_fds(connection, 4, 2)
        if len(head) < 4:
            return
        order = pickle.loads(_exactly(connection, struct.unpack("!I", head)[0]))
        born, gate = os.pipe(), os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid:
                os.write(born[1], _ANSWER.pack(pid))
                os._exit(0)
            connection.close()
            for descriptor in (*born, gate[1]):
                os.close(descriptor)
            os.read(gate[0], 1)  # until it is a child of whom it should be
            os.close(gate[0])
            as_process(partial(_live, *order, parent, descriptors))
        answer = os.read(born[0], _ANSWER.size)
        os.waitpid(between, 0)
        for descriptor in (*born, *gate, *descriptors):
            os.close(descriptor)
        connection.sendall(answer)


def _live(
    arguments: list[str], environment: Mapping[str, str], directory: str, parent: int, descriptors: list[int]
) -> None:
    os.setsid()
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
    for descriptor in set(descriptors):
        os.close(descriptor)
    program(arguments, environment, directory, parent)
