"""`Pace` compares how long each worker computes for a step, and reports the one that the others wait for.

It costs three readings of the clock per step and one small all-gather about every `LOOK_SECONDS`. The time of backward,
up to the last gradient, is measured by DDP, in the first steps of a generation and in every hundredth (more often where
steps are long). The time of forward is measured from the batch's arrival to the loss, without the strategy's
collectives, in which fast workers wait for slow ones, too (`self.log(..., sync_dist=True)`). On CUDA it is measured by
DDP, including these collectives.

Private API touched here: DDP's `_get_ddp_logging_data`, `_set_ddp_runtime_logging_sample_rate`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.events import StragglerSeen, WorkersPaced
from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.observe.stragglers import StragglerWatch
from dtf_lightning.elastic.observe.time_account import Bucket

log = logging.getLogger("dtf_lightning")

FIRST_LOOK = 10
"""Number of a generation's steps before the first comparison: DDP measures all of these."""
LOOK_SECONDS = 5.0
"""Seconds between two comparisons, about."""
MIN_WORKERS = 2
"""Smallest number of workers that can be compared."""
MAX_STEPS = 1000
"""Largest number of steps between two comparisons."""
DDP_SAMPLE_RATE = 100
"""Number of steps between two of DDP's measurements, by its own default."""


class Pace:
    """Measure one worker's steps and compare them with those of the others.

    Args:
        recorder: tells how long this worker waited for data, and records the results of comparisons.
    """

    def __init__(self, recorder: RunRecorder, clock: Clock | None = None) -> None:
        self._recorder = recorder
        self._now = (clock or SystemClock()).monotonic
        self._watch = StragglerWatch()
        self._generation = 0
        self._next = FIRST_LOOK
        """Number of the generation's steps at which all members compare; the same on every member."""
        self._first_step = self._last_step = 0
        self._last_at = self._last_wait = 0.0
        self._forward = self._forward_began = self._collectives = self._collectives_before = 0.0

    def forward_begins(self) -> None:
        """Note the time at which the batch is loaded and forward starts."""
        self._forward_began, self._collectives_before = self._now(), self._collectives

    def forward_done(self) -> None:
        """Note the time at which forward has returned the loss."""
        self._forward += self._now() - self._forward_began - (self._collectives - self._collectives_before)

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Count the time inside the context as waiting for the other workers."""
        began = self._now()
        try:
            yield
        finally:
            self._collectives += self._now() - began

    def step(self, world: World, step: int, model: Any, *, on_cpu: bool) -> None:
        """Count committed optimizer step number `step`, and compare the workers if it is time to, which is a collective.

        Args:
            model: DDP's wrapper, which measures times; any other model has none.
            on_cpu: whether the time of forward is measured here, not by DDP.
        """
        if world.size < MIN_WORKERS:
            return
        if world.generation.number != self._generation:
            self._generation, self._first_step, self._next = world.generation.number, step, FIRST_LOOK
            self._remember(step)
        elif step - self._first_step >= self._next:
            self._look(world, step, model, on_cpu=on_cpu)

    def _remember(self, step: int) -> None:
        self._last_step, self._last_at = step, self._now()
        self._last_wait = self._recorder.account.of(Bucket.DATA_WAIT)
        self._forward = 0.0

    def _look(self, world: World, step: int, model: Any, *, on_cpu: bool) -> None:
        steps = step - self._last_step
        seconds = (self._now() - self._last_at) / steps
        wait = (self._recorder.account.of(Bucket.DATA_WAIT) - self._last_wait) / steps
        forward, backward = _compute_seconds(model)
        if on_cpu:
            forward = self._forward / steps
        self._remember(step)
        # (2,): seconds busy and seconds in all, of a step
        mine = torch.tensor([wait + forward + backward, seconds], dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(world.size)]
        dist.all_gather(rows, mine)
        busy = dict(zip(world.sources, (float(row[0]) for row in rows), strict=True))
        longest = max(float(row[1]) for row in rows)
        rate = min(DDP_SAMPLE_RATE, max(1, math.ceil(LOOK_SECONDS / max(longest, 1e-6))))
        if rate < DDP_SAMPLE_RATE:
            _sample_every(model, rate)
        self._next += min(MAX_STEPS, max(rate, math.ceil(LOOK_SECONDS / max(longest, 1e-6))))
        if world.rank == 0:
            self._report(step, busy, longest)

    def _report(self, step: int, busy: dict[str, float], seconds: float) -> None:
        self._recorder.happened(WorkersPaced, step=step, seconds=seconds, busy=busy)
        for found in self._watch.look(busy, seconds, self._now()):
            if found.over:
                log.info("%s is as quick as the others again", found.worker)
            else:
                log.warning(
                    "%s is slow: it is busy for %.0f ms of a step, the median worker for %.0f ms, and all wait for it; "
                    "what its machine has is in `dtf report`",
                    found.worker, 1000 * found.busy, 1000 * found.usual,
                )  # fmt: skip
            self._recorder.happened(
                StragglerSeen, step=step, worker=found.worker, busy=found.busy, usual=found.usual, over=found.over
            )


def _compute_seconds(model: Any) -> tuple[float, float]:
    """Return the seconds of forward, and of backward up to the last gradient, in the last step that DDP measured."""
    if not isinstance(model, DistributedDataParallel):
        return 0.0, 0.0
    data: Any = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    return 1e-9 * data.get("forward_compute_time", 0), 1e-9 * data.get("backward_compute_time", 0)


def _sample_every(model: Any, steps: int) -> None:
    if isinstance(model, DistributedDataParallel):
        model._set_ddp_runtime_logging_sample_rate(steps)  # type: ignore[no-untyped-call]
