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
"""Steps of a generation before the first look: DDP measures all of these."""
LOOK_SECONDS = 5.0
MIN_WORKERS = 2
"""Alone nobody is slow."""
MAX_STEPS = 1000
"""Between two looks."""
DDP_SAMPLE_RATE = 100
"""Steps between two of DDP's measurements, by its own default."""


class Pace:
    """Measures one worker's steps and compares them with the others'.

    Args:
        recorder: knows how long this worker waited for data, and writes down what a look saw.
    """

    def __init__(self, recorder: RunRecorder, clock: Clock | None = None) -> None:
        self._recorder = recorder
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

    def step(self, world: World, step: int, model: Any, *, on_cpu: bool) -> None:
        """Optimizer step number `step` is committed. A collective, when it is time to look: all members call it each time.

        Args:
            model: DDP's wrapper, which measures; any other model has no times of its own.
            on_cpu: forward's time is this probe's, not DDP's.
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
    """Of forward, and of backward up to the last gradient, in the last step that DDP has measured."""
    if not isinstance(model, DistributedDataParallel):
        return 0.0, 0.0
    data: Any = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    return 1e-9 * data.get("forward_compute_time", 0), 1e-9 * data.get("backward_compute_time", 0)


def _sample_every(model: Any, steps: int) -> None:
    if isinstance(model, DistributedDataParallel):
        model._set_ddp_runtime_logging_sample_rate(steps)  # type: ignore[no-untyped-call]
