"""The process of a worker: runs until it is drained (SIGTERM) or stopped (a second SIGTERM, Ctrl-C)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable

from dtf_lightning.farm.worker.service.farm_worker import FarmWorker, WorkerOptions

LOOK = 1.0
"""Seconds between two looks whether it is idle."""


def run_worker(options: WorkerOptions, say: Callable[[str], None]) -> None:
    """Work until it is ended. `say` is called once a coordinator has welcomed it. Raises what `FarmWorker.run` raises."""
    asyncio.run(_work(options, say))


async def _work(options: WorkerOptions, say: Callable[[str], None]) -> None:
    worker = FarmWorker(options)
    loop = asyncio.get_running_loop()
    asked = 0

    def terminate() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            worker.drain()
        else:
            worker.stop()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_signal_handler(signal.SIGINT, worker.stop)
    jobs = [asyncio.create_task(_greet(worker, options, say))]
    if options.until_idle is not None:
        jobs.append(asyncio.create_task(_leave_when_idle(worker, options.until_idle, say)))
    try:
        await worker.run()
    finally:
        for job in jobs:
            job.cancel()


async def _greet(worker: FarmWorker, options: WorkerOptions, say: Callable[[str], None]) -> None:
    await worker.connected.wait()
    offered = ", ".join(f"{amount:g} {resource}" for resource, amount in sorted(options.devices.items()))
    say(f"worker {options.name} offers {offered}")


async def _leave_when_idle(worker: FarmWorker, seconds: float, say: Callable[[str], None]) -> None:
    """Drain it once it has had nothing to do for so long. While no coordinator answers one may have work for it."""
    since, begun = time.monotonic(), worker.num_begun
    while (left := since + seconds - time.monotonic()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, LOOK)):
                await worker.stopped()
                return
        if worker.has_work or worker.num_begun != begun or not worker.connected.is_set():
            since, begun = time.monotonic(), worker.num_begun
    say(f"it has had no task for {seconds:g} s and leaves")
    worker.drain()
