"""`Incarnation` is one start of this node's workers: what they have said, and whether they have failed or left.

Rules that this file guards:

* all workers of an incarnation enter and leave together: it fails with the first of them that does;
* a worker that was released (it left, or was told that the run is over) may end without that being a failure;
* nothing of an incarnation outlives it: the next one is a new object.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.run.keys import Fingerprint


@dataclass(kw_only=True)
class LocalWorker:
    """One worker: what it has said to its agent, and what it was told."""

    connection: int
    local_rank: int
    pid: int
    heard_at: float
    """The time of its last message, in monotonic seconds."""
    ready_after: int | None = None
    """The generation above which it waits for the next one; `None` while it does not wait."""
    fingerprint: Fingerprint | None = None
    boundary: tuple[int, int] | None = None
    """(generation to come, boundary): its answer to `Prepare`."""
    active: int = 0
    """The last generation in which it has said that it trains."""
    finished: int = 0
    """The generation in which its training loop has come to its end."""
    passed: tuple[int, int] = (0, 0)
    """(generation, number of batches that it has begun in it), as far as it has said."""
    loop_end: messages.LoopEnds | None = None
    suspect: int = 0
    """The generation in which one of its collectives has failed."""
    error: str = ""
    generation: int = 0
    """The last generation that it was handed."""
    released: bool = False
    told: set[tuple[str, int]] = field(default_factory=set)
    """(kind, target) of the messages that were sent to it and are sent once."""


class Incarnation:
    """The workers of one start, and what they have in common. Used by the loop's thread only.

    Args:
        number: the first start of the node's workers is 1; 0 stands for "not started yet".
        num_workers: number of workers that torchelastic starts.
    """

    def __init__(self, number: int = 0, num_workers: int = 1) -> None:
        self.number = number
        self.num_workers = num_workers
        self.workers: dict[int, LocalWorker] = {}
        """The workers that live, by local rank."""
        self.instance = ""
        """The run's instance, once these workers were compared with the run's fingerprint and let in."""
        self.rank_zero = False
        """Whether these workers were welcomed as rank zero of set-up."""
        self.failed = ""
        """The reason why this incarnation failed; empty while it lives."""
        self.refused = False
        """Whether it was in a generation and is refused now, which is no failure of a member."""
        self.aftermath = False
        """Whether it failed because of another member's death, which counts already."""
        self.gone = False
        """Whether all workers were released, so that their ends are no failures any more."""
        self.trained = False
        """Whether a worker has held a state in which an optimizer step is made."""
        self.unwound_from = 0
        """The last generation that none of the workers is part of any more, by order of the leader."""
        self.left_behind = False
        """Whether the others are in a generation without this node, which had asked to leave: it is on its way out."""
        self._num_ended = 0

    # --- which workers there are -------------------------------------------------------------------------------------

    def attach(self, worker: LocalWorker) -> str:
        """Take a new worker in; return the reason if it cannot be, otherwise an empty string."""
        if worker.local_rank in self.workers:
            return f"local rank {worker.local_rank} is attached already; one ElasticCallback per worker"
        self.workers[worker.local_rank] = worker
        return ""

    def by_connection(self, connection: int) -> LocalWorker | None:
        """Return the worker behind a connection, or `None` if it is of another incarnation."""
        return next((w for w in self.workers.values() if w.connection == connection), None)

    def remove(self, worker: LocalWorker) -> bool:
        """Forget a worker that has ended; return whether its end is a failure."""
        del self.workers[worker.local_rank]
        self._num_ended += 1
        if not self.would_fail(worker):
            self.note_released()
            return False
        return True

    def would_fail(self, worker: LocalWorker) -> bool:
        """Tell whether the worker's end is a failure."""
        return not (worker.released or self.gone or self.left_behind)

    def note_released(self) -> None:
        """Note that the incarnation is gone if all its workers were released or have ended."""
        num_released = self._num_ended + sum(w.released for w in self.workers.values())
        self.gone = self.gone or (num_released >= self.num_workers and not self.failed)

    # --- what they are together --------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether all workers have said hello, and live."""
        return len(self.workers) == self.num_workers

    @property
    def over(self) -> bool:
        """Whether this incarnation has failed or left."""
        return bool(self.failed) or self.gone

    @property
    def set_up(self) -> bool:
        """Whether all workers have built their model and wait."""
        return self.complete and all(w.ready_after is not None for w in self.workers.values())

    @property
    def generation(self) -> int:
        """The last generation that all workers were handed; 0 if there is none."""
        return min((w.generation for w in self.workers.values()), default=0) if self.complete else 0

    @property
    def ever_in_a_generation(self) -> bool:
        """Whether any worker was handed a generation."""
        return any(w.generation for w in self.workers.values())

    @property
    def active(self) -> bool:
        """Whether all workers train in the generation that they were handed."""
        generation = self.generation
        return generation > 0 and all(w.active == generation for w in self.workers.values())

    @property
    def finished(self) -> int:
        """The last generation in which the training loops of all workers have ended; 0 if there is none."""
        return min((w.finished for w in self.workers.values()), default=0) if self.complete else 0

    @property
    def ready_after(self) -> int | None:
        """The generation after which all workers wait for the next one; `None` while they do not."""
        if not self.set_up or not self.instance or self.over:
            return None
        said = min(w.ready_after for w in self.workers.values() if w.ready_after is not None)
        return max(said, self.unwound_from)

    @property
    def waits(self) -> bool:
        """Whether all workers are unwound and in no step."""
        return self.ready_after is not None

    @property
    def boundary(self) -> tuple[int, int] | None:
        """The (generation to come, boundary) of the furthest worker; `None` until all have answered for the same one."""
        answers = {w.boundary for w in self.workers.values()}
        known = [answer for answer in answers if answer is not None]
        agreed = self.complete and len(known) == len(answers) and len({target for target, _ in known}) == 1
        return max(known) if agreed else None

    @property
    def passed(self) -> tuple[int, int] | None:
        """The (generation, batches begun) of the furthest worker, as far as it has said; `None` without workers."""
        return max((w.passed for w in self.workers.values()), default=None)

    def suspects(self) -> list[LocalWorker]:
        """Return the workers in whose generation a collective has failed, in the order in which they came."""
        return [w for w in self.workers.values() if w.suspect]

    def first_stop(self) -> tuple[int, messages.LoopEnds] | None:
        """Return the local rank of the worker that left the training loop first, and what it said; `None` if none has."""
        stops = [(w.local_rank, w.loop_end) for w in self.workers.values() if w.loop_end is not None]
        return min(stops, key=lambda stop: (-stop[1].generation, stop[1].batches, stop[0]), default=None)

    def fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint of the first worker that has sent one."""
        return next((w.fingerprint for w in self.workers.values() if w.fingerprint is not None), None)

    def own_difference(self) -> str | None:
        """Return how the fingerprints of these workers differ among themselves; `None` if they do not."""
        prints = [w.fingerprint for w in self.workers.values() if w.fingerprint is not None]
        for other in prints[1:]:
            difference = prints[0].first_difference(other)
            if difference is not None:
                return f"two workers of one node: {difference}"
        return None
