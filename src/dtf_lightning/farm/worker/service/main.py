"""The process of a worker: runs until it is drained (SIGTERM) or stopped (a second SIGTERM, Ctrl-C)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from dtf_lightning.farm.worker.service.farm_worker import FarmWorker, WorkerOptions


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
    greeting = asyncio.create_task(_greet(worker, options, say))
    try:
        await worker.run()
    finally:
        greeting.cancel()


async def _greet(worker: FarmWorker, options: WorkerOptions, say: Callable[[str], None]) -> None:
    await worker.connected.wait()
    offered = ", ".join(f"{amount:g} {resource}" for resource, amount in sorted(options.devices.items()))
    say(f"worker {options.name} offers {offered}")
