"""Workers compare how long they are busy with a step of their own, and name the one that holds the others up.

Costs three looks at the clock per step and one small all-gather every `LOOK_SECONDS` or so. Backward's time, up to the
last gradient, is DDP's own, which it measures in the first steps of a generation and in every hundredth (or every one,
where steps are long). Forward's is from the batch's arrival to the loss, without the strategy's collectives: with
`self.log(..., sync_dist=True)` the quick wait for the slow there, too. On CUDA it is DDP's, which has them in it.

Private API touched here: DDP's `_get_ddp_logging_data`, `_set_ddp_runtime_logging_sample_rate`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.events import StragglerSeen, WorkersPaced
from dtf_lightning.elastic.observe.stragglers import StragglerWatch
from dtf_lightning.elastic.observe.time_account import Bucket

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.session.session import ElasticSession
    from dtf_lightning.elastic.rules.generation import Generation

log = logging.getLogger("dtf_lightning")

FIRST_LOOK = 10
"""Steps of a generation before the first look: DDP measures all of these."""
LOOK_SECONDS = 5.0
MIN_WORKERS = 2
"""Alone nobody is slow."""
MAX_STEPS = 1000
"""Between two looks."""
DDP_SAMPLE_RATE = 100
"""Steps between two of DDP's measurements, by its own default."""


class Pace:
    """One worker's."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._now = (clock or SystemClock()).monotonic
        self._watch = StragglerWatch()
        self._generation = 0
        self._next = FIRST_LOOK
        """Steps of the generation at which all look; every member has the same."""
        self._first_step = self._last_step = 0
        self._last_at = self._last_wait = 0.0
        self._forward = self._forward_began = self._collectives = self._collectives_before = 0.0

    def forward_begins(self) -> None:
        """The batch is there."""
        self._forward_began, self._collectives_before = self._now(), self._collectives

    def forward_done(self) -> None:
        """The loss is there."""
        self._forward += self._now() - self._forward_began - (self._collectives - self._collectives_before)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Inside, this worker waits for the others."""
        began = self._now()
        try:
            yield
        finally:
            self._collectives += self._now() - began

    def step(self, session: ElasticSession) -> None:
        """An optimizer step is committed. A collective, when it is time to look: all members call it for every step."""
        generation, step = session.generation, session.trainer.global_step
        if generation.world_size < MIN_WORKERS:
            return
        if generation.number != self._generation:
            self._generation, self._first_step, self._next = generation.number, step, FIRST_LOOK
            self._remember(session, step)
        elif step - self._first_step >= self._next:
            self._look(session, generation, step)

    def _remember(self, session: ElasticSession, step: int) -> None:
        self._last_step, self._last_at = step, self._now()
        self._last_wait = session.recorder.account.of(Bucket.DATA_WAIT)
        self._forward = 0.0

    def _look(self, session: ElasticSession, generation: Generation, step: int) -> None:
        steps = step - self._last_step
        seconds = (self._now() - self._last_at) / steps
        wait = (session.recorder.account.of(Bucket.DATA_WAIT) - self._last_wait) / steps
        forward, backward = _compute_seconds(session.strategy.model)
        if session.strategy.root_device.type == "cpu":
            forward = self._forward / steps
        self._remember(session, step)
        # (2,): seconds busy and seconds in all, of a step
        mine = torch.tensor([wait + forward + backward, seconds], dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(generation.world_size)]
        dist.all_gather(rows, mine)
        busy = dict(zip(workers(generation), (float(row[0]) for row in rows), strict=True))
        longest = max(float(row[1]) for row in rows)
        rate = min(DDP_SAMPLE_RATE, max(1, math.ceil(LOOK_SECONDS / max(longest, 1e-6))))
        if rate < DDP_SAMPLE_RATE:
            _sample_every(session.strategy.model, rate)
        self._next += min(MAX_STEPS, max(rate, math.ceil(LOOK_SECONDS / max(longest, 1e-6))))
        if session.strategy.global_rank == 0:
            self._tell(session, step, busy, longest)

    def _tell(self, session: ElasticSession, step: int, busy: dict[str, float], seconds: float) -> None:
        session.recorder.happened(WorkersPaced, step=step, seconds=seconds, busy=busy)
        for found in self._watch.look(busy, seconds, self._now()):
            if found.over:
                log.info("%s is as quick as the others again", found.worker)
            else:
                log.warning(
                    "%s is slow: it is busy for %.0f ms of a step, the median worker for %.0f ms, and all wait for it; "
                    "what its machine has is in `dtf report`",
                    found.worker, 1000 * found.busy, 1000 * found.usual,
                )  # fmt: skip
            session.recorder.happened(
                StragglerSeen, step=step, worker=found.worker, busy=found.busy, usual=found.usual, over=found.over
            )


def workers(generation: Generation) -> list[str]:
    """`node/local_rank` by rank."""
    return [f"{member.node}/{local}" for member in generation.members for local in range(member.num_workers)]


def _compute_seconds(model: Any) -> tuple[float, float]:
    """Of forward, and of backward up to the last gradient, in the last step that DDP has measured."""
    if not isinstance(model, DistributedDataParallel):
        return 0.0, 0.0
    data: Any = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    return 1e-9 * data.get("forward_compute_time", 0), 1e-9 * data.get("backward_compute_time", 0)


def _sample_every(model: Any, steps: int) -> None:
    if isinstance(model, DistributedDataParallel):
        model._set_ddp_runtime_logging_sample_rate(steps)  # type: ignore[no-untyped-call]
