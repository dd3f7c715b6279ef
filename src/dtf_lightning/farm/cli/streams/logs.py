"""Shows a task's output; of a gang all members' at once, each line with its member's rank before it."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client, TaskInfo


def show_logs(farm: Client, task: TaskInfo, *, follow: bool, revision: int = 0) -> None:
    """Write a task's output to stdout as it comes: of its latest attempt, or of one; with `follow` to its end."""
    out = sys.stdout.buffer
    if task.reused_from:
        task, revision = farm.task(task.reused_from), 0
    if task.gang == 1:
        for chunk in farm.logs(task.task_id, follow=follow, revision=revision):
            out.write(chunk)
            out.flush()
        return
    show_together([farm.logs(task.task_id, follow=follow, revision=revision, rank=n) for n in range(task.gang)], out)


def show_together(outputs: list[Iterator[bytes]], out: BinaryIO) -> None:
    """Write several outputs as they come, in whole lines, each with `[number of its output]` before it.

    Each is read in a thread of its own. Raises what reading one of them raises.
    """
    lines: queue.Queue[bytes | BaseException | None] = queue.Queue()

    def read(number: int, chunks: Iterator[bytes]) -> None:
        try:
            for line in in_lines(chunks):
                lines.put(b"[%d] %b" % (number, line))
            lines.put(None)
        except BaseException as error:
            lines.put(error)

    for number, chunks in enumerate(outputs):
        threading.Thread(target=read, args=(number, chunks), daemon=True, name=f"logs-{number}").start()
    left = len(outputs)
    while left:
        told = lines.get()
        if told is None:
            left -= 1
        elif isinstance(told, bytes):
            out.write(told)
            out.flush()
        else:
            raise told


def in_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield whole lines; the last one gets a line feed if it has none."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line + b"\n" for line in whole)
    if rest:
        yield rest + b"\n"
