"""Simulated workers, many in one process: they speak a worker's protocol by the code that real ones use (`Link`).

`python -m dtf_lightning.farm.testkit.crowd --coordinator URL --token-file FILE --workers 50`

An attempt is a pause: the command `simulate SECONDS CODE ...` takes so many seconds and ends with the code whose place
is the attempt's number, the last one for all later attempts; any other command ends at once with 0. A result is kept,
in memory, until it is acknowledged; a process that is killed forgets it, as a machine that is lost does.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning import __version__
from dtf_lightning.farm.messages import (
    Acknowledge,
    CancelAttempt,
    Draining,
    Gone,
    Hello,
    MeetingPlace,
    PickMeeting,
    Result,
    Run,
    Started,
    YieldAttempt,
)
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.testkit.ledger import Ledger, said
from dtf_lightning.farm.testkit.orders import SIMULATED
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.farm.worker.service.link import Link

Key = tuple[str, int]
"""Task and the attempt's revision."""


@dataclass(slots=True)
class _Running:
    message: Run
    started: float
    nonce: str
    timer: asyncio.TimerHandle


class SimulatedWorker:
    """Runs on an event loop: `await run()` until it is cancelled. See `Workplace`."""

    def __init__(self, name: str, addresses: tuple[str, ...], token: str, cpus: float, ledger: Ledger | None) -> None:
        self._hello = {
            "worker": name,
            "session": secrets.token_hex(8),
            "identity": f"simulated {name}",
            "version": __version__,
            "devices": {"cpu": cpus},
            "labels": (SIMULATED,),
            "host": "simulated",
        }
        self._ledger = ledger
        self._running: dict[Key, _Running] = {}
        self._kept: dict[Key, tuple[Result, str]] = {}
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self.link = Link(addresses, token, self)

    async def run(self) -> None:
        """Be a worker. Raises what `Link.run` raises."""
        await self.link.run()

    # --- what a coordinator says -------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        """See `Workplace`."""
        return Hello(
            **self._hello,  # type: ignore[arg-type]
            running=dict(self._running.keys()),
            kept=tuple(result for result, _ in self._kept.values()),
            draining=self._draining,
        )

    def catch_up(self) -> list[Started | Result]:
        """See `Workplace`."""
        started: list[Started | Result] = [
            Started(task=task, revision=revision, at=running.started)
            for (task, revision), running in self._running.items()
        ]
        return [*started, *(result for result, _ in self._kept.values())]

    def run_attempt(self, message: Run) -> None:
        """See `Workplace`."""
        key = message.task, message.revision
        if key in self._kept:
            self.link.say(self._kept[key][0])
            return
        if key in self._running:
            if message.called_off:
                self._end(key, OutcomeKind.CANCELLED, message.called_off, None)
            return
        nonce = secrets.token_hex(4)
        if message.called_off:
            self._running[key] = _Running(message, time.time(), nonce, self._loop.call_later(0.0, lambda: None))
            self._end(key, OutcomeKind.CANCELLED, message.called_off, None)
            return
        if self._ledger is not None:
            self._ledger.write("start", message.task, message.number, message.revision, self._hello["worker"], nonce)
        seconds, code = _script(message)
        now = time.time()
        timer = self._loop.call_later(seconds, self._ended, key, code)
        self._running[key] = _Running(message, now, nonce, timer)
        self.link.say(Started(task=message.task, revision=message.revision, at=now))

    def pick_meeting(self, message: PickMeeting) -> None:
        """See `Workplace`. Nobody will come there."""
        self.link.say(MeetingPlace(task=message.task, revision=message.revision, host="127.0.0.1", port=1))

    def cancel(self, message: CancelAttempt) -> None:
        """See `Workplace`."""
        key = message.task, message.revision
        if key in self._running:
            self._end(key, OutcomeKind.CANCELLED, message.reason, None)
        self.link.say(Gone(task=message.task, revision=message.revision))

    def yield_device(self, message: YieldAttempt) -> None:
        """See `Workplace`."""
        key = message.task, message.revision
        if key in self._running:
            self._end(key, OutcomeKind.YIELDED, message.reason, 0)

    def acknowledged(self, message: Acknowledge) -> None:
        """See `Workplace`."""
        kept = self._kept.pop((message.task, message.revision), None)
        if kept is not None and self._ledger is not None:
            result, _ = kept
            verdict = "recorded" if message.recorded else "stale"
            self._ledger.write(verdict, result.task, result.number, result.outcome.kind.value)

    def drain(self) -> None:
        """See `Workplace`."""
        self._draining = True
        self.link.say(Draining())

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _ended(self, key: Key, code: int) -> None:
        kind = OutcomeKind.FAILED if code else OutcomeKind.COMPLETED
        self._end(key, kind, f"exit code {code}", code)

    def _end(self, key: Key, kind: OutcomeKind, reason: str, code: int | None) -> None:
        running = self._running.pop(key)
        running.timer.cancel()
        task, revision = key
        number = running.message.number
        outcome = AttemptOutcome(
            kind=kind,
            reason=reason,
            exit_code=code,
            started=running.started,
            ended=time.time(),
            tail=said(task, number, running.nonce),
        )
        result = Result(task=task, number=number, revision=revision, outcome=outcome)
        self._kept[key] = result, running.nonce
        self.link.say(result)


def _script(message: Run) -> tuple[float, int]:
    """Return the seconds that an attempt takes, and its exit code."""
    match message.specification.command:
        case ("simulate", seconds, *codes):
            return float(seconds), int(codes[min(message.number, len(codes)) - 1])
    return 0.0, 0


async def be_a_crowd(
    names: list[str],
    addresses: tuple[str, ...],
    token: str,
    *,
    cpus: float,
    ledger: Ledger | None,
    ready: Callable[[], object],
) -> None:
    """Be these workers until cancelled. `ready` is called once all are welcome. Raises what `Link.run` raises."""
    workers = [SimulatedWorker(name, addresses, token, cpus, ledger) for name in names]
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.run())
        for worker in workers:
            await worker.link.connected.wait()
        ready()


async def _main(arguments: argparse.Namespace) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    ledger = Ledger(arguments.ledger) if arguments.ledger else None
    names = [f"{arguments.prefix}{number}" for number in range(arguments.workers)]
    await be_a_crowd(
        names,
        tuple(arguments.coordinator.split(",")),
        read_token(arguments.token_file),
        cpus=arguments.cpus,
        ledger=ledger,
        ready=lambda: print(f"{len(names)} simulated workers", flush=True),
    )


def main() -> None:
    """Be the crowd that the arguments describe, until SIGTERM."""
    parser = argparse.ArgumentParser(description="Simulated farm workers, many in one process.")
    parser.add_argument("--coordinator", required=True, metavar="URL[,URL]")
    parser.add_argument("--token-file", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--cpus", type=float, default=4.0, help="that each offers (default: %(default)g)")
    parser.add_argument("--prefix", default="simulated-", help="of their names (default: %(default)s)")
    parser.add_argument("--ledger", type=Path, help="file to which they write what they do")
    try:
        asyncio.run(_main(parser.parse_args()))
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    main()
