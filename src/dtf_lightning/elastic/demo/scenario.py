"""`Scenario` plays the demo's acts, in order: nodes start, are killed and leave.

After each act it waits until the new generation has trained for some steps. Each wait has a deadline, and ends at once
if a node ends that was not meant to.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.demo.display import Display
from dtf_lightning.elastic.demo.interruption import POLL, Interruption
from dtf_lightning.elastic.demo.observe import LedgerTail, SeenGeneration
from dtf_lightning.elastic.events import WorkerRescaled
from dtf_lightning.elastic.testkit.local_cluster import LocalCluster, LocalNode
from dtf_lightning.errors import DtfError

START_TIMEOUT = 120.0
"""Seconds for a node to start and train: it imports torch and Lightning on a busy machine, from a cold disk."""

RESCALE_TIMEOUT = 60.0
"""Seconds for a generation to form and to train for some steps."""

END_TIMEOUT = 120.0

LAST_LINES = 15
"""Number of lines of a node's output that an error shows."""


class DemoFailed(DtfError):
    """A condition that the demo waited for was not met, or a process ended in another way than it should."""


@dataclass(frozen=True, kw_only=True)
class Act:
    """Describe what was done to the run, and the generation that it led to."""

    what: str
    generation: int
    at: float | None
    """Time of the signal, in seconds since the epoch; `None` for a start, because a node's imports take long."""


class Scenario:
    """Play the demo's acts on a cluster.

    Args:
        cluster: runs the nodes; it has a `run_dir`.
        display: shows acts and waits.
        interruption: can end every wait.
        min_steps: smallest number of steps of a generation before the next act.
        min_epochs: smallest number of epochs of the whole run.
        stop_file: file that is made when training is to end.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        display: Display,
        interruption: Interruption,
        *,
        min_steps: int,
        min_epochs: int,
        stop_file: Path,
    ) -> None:
        assert cluster.run_dir is not None
        self._cluster, self._display, self._interruption = cluster, display, interruption
        self._min_steps, self._min_epochs, self._stop_file = min_steps, min_epochs, stop_file
        self._tail = LedgerTail(cluster.run_dir / "ledger")
        self._generation = 0
        """Number of the generation that the last act led to."""
        self._meant_to_end: dict[str, int] = {}
        """Expected exit code of each node that is meant to end."""
        self._acts: list[Act] = []

    def play(self) -> list[Act]:
        """Play all acts and return them. Raises `DemoFailed` if one has no effect in time, or a node ends wrongly."""
        self._start("a", "b", workers=2)
        self._start("c", workers=3)
        self._kill_a_worker(workers=2)
        self._trains(3, "started again by torchrun", START_TIMEOUT)
        self._kill_the_leader(workers=2)
        self._start("d", workers=3)
        self._terminate_a_node(workers=2)
        self._end()
        return self._acts

    # --- acts; `workers` is the world size that each leads to --------------------------------------------------------

    def _start(self, *names: str, workers: int) -> None:
        self._display.say(f"start {' and '.join(f'node {name}' for name in names)}")
        for name in names:
            self._cluster.start(name)
        self._trains(workers, "a new node" if len(names) == 1 else f"{' and '.join(names)} start", START_TIMEOUT)

    def _kill_a_worker(self, workers: int) -> None:
        victim = self._any_node()
        self._display.say(f"kill -9 the worker of node {victim.name}")
        at = time.time()
        victim.kill_worker()
        self._trains(workers, "kill -9 of its worker", RESCALE_TIMEOUT, at)

    def _kill_the_leader(self, workers: int) -> None:
        victim = self._cluster.leader()
        self._display.say(f"kill -9 node {victim.name}, agent and worker: it is the leader's")
        self._meant_to_end[victim.name] = -signal.SIGKILL
        at = time.time()
        victim.kill()
        self._trains(workers, "kill -9 of the leader", RESCALE_TIMEOUT, at)

    def _terminate_a_node(self, workers: int) -> None:
        leaver = self._any_node()
        self._display.say(f"SIGTERM to node {leaver.name}")
        self._meant_to_end[leaver.name] = 0
        at = time.time()
        leaver.send(signal.SIGTERM)
        self._trains(workers, "SIGTERM", RESCALE_TIMEOUT, at)

    def _end(self) -> None:
        self._until(lambda: self._epoch() + 1 >= self._min_epochs, f"epoch {self._min_epochs}", END_TIMEOUT)
        self._stop_file.touch()
        nodes = self._cluster.nodes
        for name in nodes:
            self._meant_to_end.setdefault(name, 0)
        self._until(
            lambda: all(node.process.poll() is not None for node in nodes.values()), "training to end", END_TIMEOUT
        )
        for name, meant in self._meant_to_end.items():
            if nodes[name].process.returncode != meant:
                raise DemoFailed(f"node {name} was to end with exit code {meant}; {self._last_words(nodes[name])}")
        self._display.say(f"training ends after {self._epoch() + 1} epochs, every node with the right exit code")

    def _any_node(self) -> LocalNode:
        """Return a node that is not the leader's, which has an act of its own."""
        leader = self._cluster.leader().name
        return next(
            node
            for name, node in reversed(self._cluster.nodes.items())
            if name != leader and name not in self._meant_to_end
        )

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _trains(self, world_size: int, what: str, timeout: float, at: float | None = None) -> None:
        """Wait until a generation after the last act's has that world size and has trained for some steps."""

        def there() -> SeenGeneration | None:
            newest = self._tail.look()
            for seen in self._tail.generations.values():
                if seen.number > self._generation and seen.world_size == world_size and newest is not None:
                    # A generation that is already over will make no more steps.
                    return seen if seen.steps >= self._min_steps or seen.number < newest.number else None
            return None

        self._until(lambda: there() is not None, f"{world_size} workers to train ({what})", timeout)
        seen = there()
        assert seen is not None
        self._generation = seen.number
        self._acts.append(Act(what=what, generation=seen.number, at=at))
        pauses = [
            event.pause
            for event in self._cluster.events()
            if isinstance(event, WorkerRescaled) and event.generation == seen.number
        ]
        paused = f" after a pause of {1000 * median(pauses):.0f} ms" if pauses else ""
        self._display.say(f"generation {seen.number}: {world_size} workers train{paused}")

    def _until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        def holds() -> bool:
            if condition():
                return True
            for name, node in self._cluster.nodes.items():
                if name not in self._meant_to_end and node.process.poll() is not None:
                    raise DemoFailed(f"waiting for {what}: node {name} was to live on; {self._last_words(node)}")
            self._display.show(self._now(what))
            return False

        try:
            poll_until(holds, timeout, what, interval=POLL, pause=self._interruption.pause)
        except TimeoutError:
            words = "\n".join(f"node {node.name}; {self._last_words(node)}" for node in self._cluster.nodes.values())
            raise DemoFailed(f"{what}: did not come about within {timeout:g} s\n{words}") from None

    def _epoch(self) -> int:
        seen = self._tail.look()
        return seen.epoch if seen is not None else 0

    def _now(self, what: str) -> str:
        seen = self._tail.look()
        training = (
            f"generation {seen.number}, {seen.world_size} workers, epoch {seen.epoch + 1}, step {seen.step}; "
            if seen is not None
            else ""
        )
        return f"{training}waiting for {what}"

    @staticmethod
    def _last_words(node: LocalNode) -> str:
        code = node.process.poll()
        state = "it lives" if code is None else f"it ended with exit code {code}"
        lines = node.output().strip().splitlines()[-LAST_LINES:]
        return "\n  | ".join([f"{state}, its last words ({node.log}):", *lines])
