"""Workers that end what they are told to run by a rule of the test."""

from __future__ import annotations

import contextlib
import queue
import threading
import time

from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, PlayedWorker


class Players:
    """`fails(worker, specification)` returns the exit code, or whether it is 1."""

    def __init__(self, coordinator, fails, names=("a", "b")):
        self.fails, self.ran, self._over = fails, [], threading.Event()
        self.workers = [PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name) for name in names]
        for worker in self.workers:
            worker.wait_until_welcome()
        self._threads = [threading.Thread(target=self._play, args=(worker,)) for worker in self.workers]
        for thread in self._threads:
            thread.start()

    def _play(self, worker):
        while not self._over.is_set():
            with contextlib.suppress(queue.Empty):
                order = worker.orders.get(timeout=0.05)
                code = int(self.fails(worker.name, order.specification))
                self.ran.append((worker.name, order.specification))
                times = {"started": time.time() - 0.001, "ended": time.time()}
                if code:
                    worker.end(order, OutcomeKind.FAILED, exit_code=code, reason=f"exit code {code}", **times)
                else:
                    worker.end(order, **times)

    def close(self):
        self._over.set()
        for thread, worker in zip(self._threads, self.workers, strict=True):
            thread.join(DEADLINE)
            worker.close()
