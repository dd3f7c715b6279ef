"""A worker that trains nothing: steps, boundaries, generations, and an end when the file named by its argument appears.

`python link_worker.py END_FILE [fail-at-step]`
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from dtf_lightning.elastic.link.worker_link import RunFinished, WorkerLink
from dtf_lightning.errors import GenerationBroken

STEP = 0.01


def main() -> None:
    end_file = Path(sys.argv[1])
    fail_at = int(sys.argv[2]) if len(sys.argv) > 2 else -1
    link = WorkerLink(os.environ["DTF_AGENT_SOCKET"], int(os.environ["LOCAL_RANK"]))
    say(f"pid {os.getpid()} incarnation {link.welcome.incarnation}")
    step = 0
    while True:
        try:
            assignment = link.ready({"script": "link_worker"}, ())
        except RunFinished:
            say("not needed")
            return
        except GenerationBroken as error:  # before this worker has read that it belongs to it
            say(f"broken: {error}")
            continue
        number = assignment.generation["number"]
        link.active(step)
        say(f"generation {number} rank {assignment.rank} of {assignment.world_size}")
        try:
            while not end_file.exists():
                time.sleep(STEP)
                step += 1
                if step == fail_at:
                    raise ValueError("the user's own mistake")
                link.check()
                if link.at_boundary():
                    break
            else:
                link.finished(step)
                say("finished")
                return
        except GenerationBroken as error:
            say(f"broken: {error}")
            continue
        if link.stopping is not None and link.stopping.leave:
            link.left()
            say("left")
            return


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
