"""Real processes with a process group among them, each driven through a pipe: what a worker is to its agent.

A rank's main thread does what it is told, one thing after the other; a second thread listens meanwhile, as a worker's
does, and is the one that cuts the group.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import socket
import threading
import time
from collections import OrderedDict, defaultdict
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.collectives import process_group
from dtf_lightning.elastic.collectives.communication import is_communication_error
from dtf_lightning.elastic.collectives.process_group import GenerationGroup
from dtf_lightning.elastic.collectives.state_transfer import receive_state, send_state
from dtf_lightning.processes.freezing import freeze

DEADLINE = 60.0
"""Seconds; only a failing test waits this long."""

CONNECT_TIMEOUT = 10.0
"""Seconds that a group has to form unless a test says otherwise: time enough on a busy machine."""

FORMING_TIMEOUT = CONNECT_TIMEOUT / process_group._MESH_SHARE
"""Seconds; the timeout that torch's group is made with, and which must not be that of what is done in it."""

PRELOAD = [
    "torch",
    "torch.distributed",
    "dtf_lightning.elastic.collectives.process_group",
    "dtf_lightning.elastic.collectives.state_transfer",
]


class RankFailed(Exception):
    """What a rank was told to do raised an exception."""

    def __init__(self, kind: str, text: str, communication: bool) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.communication = communication


class Rank:
    """One process, seen from the test."""

    def __init__(self, context: multiprocessing.context.BaseContext) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()
        self.pid: int = self._process.pid

    def start(self, name: str, *args: Any) -> None:
        """Have the main thread do something; returns when it is about to."""
        self._connection.send((name, args))
        assert self._receive() == "begun"

    def outcome(self) -> Any:
        """What it returned, or the `RankFailed` that it raised."""
        return self._receive()

    def result(self) -> Any:
        answer = self.outcome()
        if isinstance(answer, RankFailed):
            raise answer
        return answer

    def answers_within(self, seconds: float) -> bool:
        return self._connection.poll(seconds)

    def call(self, name: str, *args: Any) -> Any:
        self.start(name, *args)
        return self.result()

    def cut(self) -> None:
        """From the listening thread, whatever the main thread does."""
        self._connection.send(("cut", ()))

    def hang_up(self) -> None:
        """From the listening thread, too."""
        self._connection.send(("hang_up", ()))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def freeze(self) -> None:
        """Stop all its threads; returns when none runs."""
        freeze(self.pid)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join()

    def close_early(self) -> None:
        """End the process; what closes it later finds it ended."""
        self._process.kill()
        self._process.join()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()

    def _receive(self) -> Any:
        if not self._connection.poll(DEADLINE):
            raise TimeoutError(f"rank process {self.pid} did not answer in {DEADLINE:g} s")
        return self._connection.recv()


def _serve(connection: Connection) -> None:
    torch.set_num_threads(1)
    member = _Member()
    todo: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                name, args = connection.recv()
            except (EOFError, OSError):
                os._exit(0)
            if name in ("cut", "hang_up"):
                getattr(member.group, name)()
            else:
                todo.put((name, args))

    threading.Thread(target=listen, daemon=True).start()
    while True:
        name, args = todo.get()
        connection.send("begun")
        try:
            answer = getattr(member, name)(*args)
        except Exception as error:
            answer = type(error).__name__, str(error), is_communication_error(error)
            connection.send(_Failed(*answer))
        else:
            connection.send(answer)


class _Failed:
    """Pickles as the `RankFailed` that the test gets."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return RankFailed, self.args


class _Member:
    """What a rank's main thread can be told to do."""

    def __init__(self) -> None:
        self.group = GenerationGroup()
        self.pairs: list[tuple[socket.socket, socket.socket]] = []

    def form(
        self,
        port: int,
        prefix: str,
        rank: int,
        world_size: int,
        connect_timeout: float = CONNECT_TIMEOUT,
        timeout: float = 600.0,
    ) -> None:
        self.group.form(
            host="127.0.0.1", port=port, prefix=prefix, rank=rank, world_size=world_size, backend="gloo",
            connect_timeout=connect_timeout, timeout=timedelta(seconds=timeout), device=torch.device("cpu"),
        )  # fmt: skip

    def form_unwanted(self, port: int, prefix: str) -> None:
        def still_wanted() -> None:
            raise RuntimeError("declared broken before it formed")

        self.group.form(
            host="127.0.0.1", port=port, prefix=prefix, rank=0, world_size=2, backend="gloo", connect_timeout=10.0,
            timeout=timedelta(seconds=10), device=torch.device("cpu"), still_wanted=still_wanted,
        )  # fmt: skip

    def all_reduce(self) -> float:
        ones = torch.ones(4)
        dist.all_reduce(ones)
        return ones.sum().item() / 4

    def all_reduce_on(self, size: int, times: int | None = None) -> None:
        """One after the other, so often, or until one fails."""
        values = torch.zeros(size)
        for _ in itertools.count() if times is None else range(times):
            dist.all_reduce(values)

    def forget(self, marker: str) -> None:
        """From now on a cut wakes nobody, as when gloo has forgotten a waiter; who is recognised as one makes the file."""
        self.group._shut_connections_down = lambda: None  # type: ignore[method-assign]
        self.group.on_forgotten = Path(marker).touch

    def be_watched(self, seconds: float) -> None:
        """After a cut this process's main thread gets so long to come out of its group."""
        process_group.FREE_TIMEOUT = seconds

    def recognise(self, marker: str) -> None:
        """If gloo forgets this rank, the file is made."""
        self.group.on_forgotten = Path(marker).touch

    def form_and_all_reduce_on(self, port: int, prefix: str, rank: int, world_size: int, size: int) -> None:
        """Form with long timeouts, then one all-reduce after the other until one fails."""
        self.form(port, prefix, rank, world_size, 600.0)
        self.all_reduce_on(size)

    def busy(self, seconds: float) -> None:
        """In torch's backward pass, computing; and then waiting for a connection of the user's own."""
        values = torch.ones(200, 200, requires_grad=True)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            (values @ values).sum().backward()
        left, right = socket.socketpair()
        with left, right, contextlib.suppress(TimeoutError):
            left.settimeout(seconds)
            left.recv(1)

    def destroy(self) -> None:
        self.group.destroy()

    def cycle(self, port: int, prefix: str, rank: int, world_size: int, times: int) -> None:
        for number in range(times):
            self.form(port, f"{prefix}/{number}", rank, world_size)
            assert self.all_reduce() == world_size
            self.group.destroy()

    def holds(self) -> tuple[int, int]:
        """Numbers of descriptors and of threads, C++'s included."""
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def fork(self) -> int:
        """A child that lives on, as a DataLoader worker does for a while; returns its pid."""
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        return child

    def open_pair(self) -> None:
        """Sockets of the user's own: a logger's, a database's."""
        self.pairs.append(socket.socketpair())

    def use_pairs(self) -> list[bytes]:
        heard = []
        for left, right in self.pairs:
            left.settimeout(1.0)
            right.settimeout(1.0)
            with contextlib.suppress(OSError):
                left.sendall(b"hello")
            heard.append(right.recv(10))
        return heard

    def send(self, kind: str, destination: int) -> int:
        return send_state(STATES[kind](), destination)

    def receive(self, kind: str, source: int) -> list[str]:
        """What differs from the state of that kind."""
        return list(differences(STATES[kind](), receive_state(source)))


# --- states to send -----------------------------------------------------------------------------------------------

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64,
]  # fmt: skip


class Settings(dict):
    """A dictionary with a class of its own, as Lightning's hyperparameters are."""


def _mixed() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)

    def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) * 50).to(dtype)

    shared = numbers(torch.float32, 3)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.25)
    by_name: dict[str, Any] = defaultdict(list)
    by_name["a"] = [numbers(torch.float32, 2)]
    return {
        "dtypes": {str(dtype): numbers(dtype, 3, 2) for dtype in DTYPES},
        "scalars": [numbers(dtype) for dtype in DTYPES],
        "empty": (torch.empty(0), torch.empty(3, 0, 2, dtype=torch.bool)),
        "strided": {
            "transposed": numbers(torch.float32, 4, 5).t(),
            "sliced": numbers(torch.int64, 10)[::3],
            "expanded": numbers(torch.float32, 1).expand(4),
            "channels_last": numbers(torch.float32, 2, 3, 4, 4).to(memory_format=torch.channels_last),
        },
        "shared": {"one": shared, "other": shared},
        "state_dict": model.state_dict(),
        "ordered": OrderedDict(b=numbers(torch.float32, 2), a=1),
        "settings": Settings(lr=0.1, weights=numbers(torch.float32, 2)),
        "default": by_name,
        "parameter": torch.nn.Parameter(numbers(torch.float32, 2)),
        "plain": [None, 1, 2.5, "text", b"bytes", {3, 4}, {5: {"deep": [(numbers(torch.float32, 1),)]}}],
    }


def _large() -> dict[str, Any]:
    """Alone above 1 MiB; small ones that fill more than one bucket of 8 MiB, with changes of type among them."""
    generator = torch.Generator().manual_seed(6)
    small = {f"small{n}": torch.rand(200_000, generator=generator) for n in range(12)}
    small["small5"] = small["small5"].to(torch.bfloat16)
    return {"alone": torch.rand(3_000_000, generator=generator), **small, "flags": torch.rand(1 << 20) < 0}


STATES: dict[str, Any] = {"mixed": _mixed, "large": _large, "empty": dict, "no tensors": lambda: {"a": [1, (2,)]}}


def differences(expected: Any, got: Any, path: str = "state") -> Any:
    """Where `got` is not `expected`: classes, dtypes, shapes, bits, attributes."""
    if isinstance(expected, torch.Tensor):
        if (
            not isinstance(got, torch.Tensor)
            or (expected.dtype, expected.shape) != (got.dtype, got.shape)
            or got.device.type != "cpu"
            or not torch.equal(expected, got)
        ):
            yield f"{path}: {expected!r} became {got!r}"
    elif type(expected) is not type(got):
        yield f"{path}: {type(expected)} became {type(got)}"
    elif isinstance(expected, dict):
        if list(expected) != list(got) or getattr(expected, "__dict__", None) != getattr(got, "__dict__", None):
            yield f"{path}: {list(expected)} became {list(got)}, or an attribute is missing"
        for key in expected:
            yield from differences(expected[key], got.get(key), f"{path}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(got):
            yield f"{path}: {len(expected)} items became {len(got)}"
        for index, pair in enumerate(zip(expected, got, strict=False)):
            yield from differences(*pair, f"{path}[{index}]")
    elif expected != got:
        yield f"{path}: {expected!r} became {got!r}"
