"""Agents in this process, with fake workers that speak the protocol over real sockets and do what a test tells them."""

from __future__ import annotations

import contextlib
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dtf_lightning.clock import SystemClock
from dtf_lightning.elastic.agent.inbox import PeerAnswered
from dtf_lightning.elastic.agent.live.agent import LiveAgent
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import WorkerState
from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.elastic.settings import AgentSettings, ElasticSettings
from dtf_lightning.etcd.store import Store
from support.lifelines import Holder

PATIENCE = 60.0
"""Seconds that anything which must come gets to come."""
BOUNDARY = 7
"""Where every fake worker is when it is asked."""
STORE_PORT = 12345
"""Nobody connects to it here."""

M = TypeVar("M", bound=messages.Message)


class FakeWorker:
    """One worker's connection. What the agent sends is read at once, and kept in order."""

    def __init__(self, path: str, local_rank: int = 0, *, pid: int = 0, heartbeats: bool = True) -> None:
        self.local_rank = local_rank
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.settimeout(0.2)
        self._heartbeats = heartbeats
        self._inbox: queue.Queue[messages.Message | None] = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._read, daemon=True, name=f"fake-worker-{local_rank}")
        self.say(messages.Hello(local_rank=local_rank, pid=pid))
        self._thread.start()

    def _read(self) -> None:
        buffer = b""
        while not self._closed:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                if self._heartbeats:
                    self.say(messages.Heartbeat(step=0))
                continue
            except OSError:
                break
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                message = messages.decode(line)
                if isinstance(message, messages.Prepare):  # the listener's answer: the main thread is in a step
                    self.say(messages.At(target=message.target, boundary=BOUNDARY))
                else:
                    self._inbox.put(message)
        self._inbox.put(None)

    def say(self, message: messages.Message) -> None:
        try:
            self._socket.sendall(message.encode())
        except OSError:
            assert self._closed or isinstance(message, messages.Heartbeat)

    def hold_lifeline(self) -> None:
        """As a real worker does; `end_slowly` ends its holder."""
        self._holder = Holder()
        line = messages.HoldsLifeline().encode()
        socket.send_fds(self._socket, [line], [self._holder.descriptor])
        self._holder.lifeline.close_file()

    def end_slowly(self) -> None:
        """What its agent sees of a kill -9 while the kernel frees much memory; `die` is what it sees then."""
        self._holder.end()

    def expect(self, kind: type[M], timeout: float = PATIENCE) -> M:
        """The next message, which must be of this kind."""
        try:
            message = self._inbox.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"expected {kind.__name__} within {timeout:g} s, got nothing") from None
        assert isinstance(message, kind), f"expected {kind.__name__}, got {message!r}"
        return message

    def expect_end(self, timeout: float = PATIENCE) -> None:
        """The agent is gone: end of file."""
        message = self._inbox.get(timeout=timeout)
        assert message is None, f"expected the end, got {message!r}"

    @property
    def unread(self) -> int:
        """Messages that no `expect` has taken."""
        return self._inbox.qsize()

    def die(self) -> None:
        """What its agent sees of a kill -9."""
        self._closed = True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the agent was first
        self._thread.join(PATIENCE)
        self._socket.close()

    # --- what a real worker says in a row ----------------------------------------------------------------------------

    def ready(
        self, after: int = 0, fingerprint: dict[str, str] | None = None, parameters: tuple[str, ...] = ()
    ) -> None:
        self.say(messages.Ready(after=after, fingerprint=fingerprint or {"seed": "1"}, parameters=parameters))

    def train(self) -> Generation:
        """Take the next generation, and say that it trains."""
        generation = Generation.from_json(self.expect(messages.Assign).generation)
        self.say(messages.Active(generation=generation.number, step=0))
        return generation

    def stop_at_boundary(self) -> messages.Stop:
        """Stop where the leader says; a leaver leaves."""
        stop = self.expect(messages.Stop)
        if stop.leave:
            self.say(messages.Left())
            self.die()
        else:
            self.ready(after=stop.target - 1)
        return stop

    def unwind(self) -> messages.Fail:
        fail = self.expect(messages.Fail)
        self.ready(after=fail.target - 1)
        return fail


@dataclass
class FakeNode:
    """An agent and its fake workers."""

    name: str
    agent: LiveAgent
    store: Store
    socket_path: str
    workers: list[FakeWorker] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_workers(self, num: int = 1, *, real_pids: bool = False, heartbeats: bool = True) -> None:
        """What torchelastic does: ask, tell how many, start them."""
        self.agent.await_start()
        self.agent.workers_starting(num)
        for local_rank in range(num):
            pid = 0
            if real_pids:
                self.processes.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
                pid = self.processes[-1].pid
            self.workers.append(FakeWorker(self.socket_path, local_rank, pid=pid, heartbeats=heartbeats))
        self.welcomes = [worker.expect(messages.Welcome) for worker in self.workers[-num:]]

    @property
    def worker(self) -> FakeWorker:
        return self.workers[-1]

    def look(self) -> None:
        """Let the agent see what its clock says, now; it would when the time has passed that it waits for."""
        self.agent._inbox.put(PeerAnswered(self.name))

    def close(self) -> None:
        self.agent.close()
        for worker in self.workers:
            worker.die()
        for process in self.processes:
            process.kill()
            process.wait()
        self.store.close()


class HeldClock(SystemClock):
    """The machine's clock, but for the time in which it was held, and for leaps."""

    def __init__(self) -> None:
        self._held_at: float | None = None
        self._lost = 0.0

    def monotonic(self) -> float:
        held_at = self._held_at
        return (super().monotonic() if held_at is None else held_at) - self._lost

    def leap(self, seconds: float) -> None:
        """So much time passes at once."""
        self._lost -= seconds

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No window and no deadline passes in here."""
        self._held_at = super().monotonic()
        yield
        self._lost += super().monotonic() - self._held_at
        self._held_at = None


class FakeCluster:
    """Nodes of one run on one store."""

    def __init__(self, client: Callable[[], Store], run_id: str, **elastic: float) -> None:
        self._client = client
        self.run_id = run_id
        self.elastic = {"min_nodes": 1, "max_nodes": 4, "stability_window": 0.05, "initial_window": 0.1, **elastic}
        self.nodes: list[FakeNode] = []
        self.clock = HeldClock()
        self._directory = Path(tempfile.mkdtemp(prefix="dtf-"))
        self.store = client()

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()
        self.store.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def settings(self, **agent: object) -> AgentSettings:
        return AgentSettings(elastic=ElasticSettings(**self.elastic), **agent)  # type: ignore[arg-type]

    def agent(self, name: str, **agent_settings: object) -> FakeNode:
        """A node whose workers are not started yet."""
        store = self._client()
        socket_path = str(self._directory / f"{name}-{len(self.nodes)}.sock")
        agent = LiveAgent(
            store,
            self.settings(**agent_settings),
            self.run_id,
            node=name,
            host="127.0.0.1",
            store_port=STORE_PORT,
            socket_path=socket_path,
            clock=self.clock,
        )
        node = FakeNode(name, agent, store, socket_path)
        self.nodes.append(node)
        agent.start()
        return node

    def node(self, name: str, num_workers: int = 1, **options: bool) -> FakeNode:
        """A node whose workers have been welcomed."""
        node = self.agent(name)
        node.start_workers(num_workers, **options)
        return node

    def training(self, *names: str) -> list[FakeNode]:
        """Nodes of one worker each that train in a common generation 1, the first one leading."""
        nodes = [self.node(name) for name in names]
        self.all_ready(*nodes)
        for node in nodes:
            assert len(node.worker.train().members) == len(names)
        return nodes

    def all_ready(self, *nodes: FakeNode) -> None:
        """Their workers are ready within one window, however long that takes."""
        with self.clock.held():
            for worker in (worker for node in nodes for worker in node.workers):
                worker.ready()
            names = {node.name for node in nodes}
            self.wait_for(
                lambda view: all(name in view.nodes and view.nodes[name].state is WorkerState.SYNCING for name in names)
            )

    def wait_for(self, what: Callable[[RunView], bool], timeout: float = PATIENCE) -> RunView:
        """The first view of the run's keys in which this holds."""
        view = RunView(RunKeys(self.run_id))
        deadline = time.monotonic() + timeout
        snapshot = self.store.range(view.keys.prefix)
        view.reset(snapshot)
        watch = self.store.watch(view.keys.prefix, start_revision=snapshot.revision + 1)
        try:
            while not what(view):
                left = deadline - time.monotonic()
                assert left > 0, f"did not come within {timeout:g} s; nodes: {view.nodes}, status: {view.status}"
                view.apply(watch.get(left) or ())
        finally:
            watch.cancel()
        return view

    @property
    def view(self) -> RunView:
        return self.wait_for(lambda _: True)


def members(generation: Generation) -> list[str]:
    """Their ids, in rank order."""
    return [member.id for member in generation.members]
