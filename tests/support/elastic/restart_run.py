"""A run whose workers are started anew, under any rendezvous, on this machine; and what must hold at its end."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.observe.ledger import Audit, audit, read_ledger
from support.elastic.programs.restart_script import BATCH, EPOCHS, NUM_SAMPLES
from support.elastic.torchrun import PATIENCE, Torchrun
from support.fork_server import ForkServer

SCRIPT = Path(__file__).parent / "programs/restart_script.py"


class RestartRun:
    """Starts nodes, looks at their ledgers.

    Args:
        folder: the run's; every node has its own memory in it.
        every: `snapshot_every_n_steps`.
        rendezvous: torchrun's flags; `None` for ours in restart mode.
        server: its nodes are forked from there.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        every: int = 5,
        endpoint: str = "",
        rendezvous: tuple[str, ...] | None = None,
        server: ForkServer | None = None,
    ) -> None:
        self.folder, self.run_id, self.every = folder, run_id, every
        self.endpoint, self.rendezvous = endpoint, rendezvous
        self.server = server
        self.nodes: list[Torchrun] = []

    def start(self, name: str, *, nnodes: str = "1:3", num_workers: int = 1, restarts: int = 3) -> Torchrun:
        """Start a node that is called `name`: its memory is that of earlier nodes of this name."""
        node = Torchrun(
            self.endpoint,
            self.run_id,
            str(SCRIPT),
            str(self.folder),
            str(self.every),
            nnodes=nnodes,
            num_workers=num_workers,
            conf="mode=restart,initial_window=0.3,stop_grace=20",
            options=(f"--max-restarts={restarts}",),
            env={"MEMORY": f"memory-{name}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            rendezvous=self.rendezvous,
            server=self.server,
        )
        self.nodes.append(node)
        return node

    def worker(self, node: Torchrun, world_size: int) -> int:
        """The pid of a worker that the node has started in a world of this size."""
        return int(node.expect(rf"worker (\d+) rank \d+ of {world_size}")[1])

    def wait_for_steps(self, number: int) -> None:
        """Until so many more steps have been drawn by the newest life."""
        start = self._newest_draw()
        poll_until(
            lambda: self._newest_draw() >= start + number,
            PATIENCE,
            lambda: f"{number} more steps; printed:\n{''.join(node.output[-3000:] for node in self.nodes)}",
        )

    def go_fast(self) -> None:
        (self.folder / "fast").touch()

    def finish(self) -> list[str]:
        """Let the run come to its end; what the workers printed last."""
        self.go_fast()
        done = []
        for node in self.nodes:
            if node.process.poll() is None:
                assert node.wait() == 0, node.output
            done += re.findall(r"done rank \d+ of \d+ step \d+ \S+?\.\d{9}", node.output)
        return done

    def close(self) -> None:
        for node in self.nodes:
            node.__exit__()

    def audit(self) -> Audit:
        return audit(sorted(self.folder.glob("ledger/*.jsonl")))

    def lost_steps(self) -> list[int]:
        """Of each life but the last: committed steps that the next one did not go on from."""
        begins = self.audit().resume_steps
        lost = []
        for life in sorted(begins)[:-1]:
            later = min(begins[other] for other in begins if other > life)
            lost.append(max(0, self._last_draw(life) - later))
        return lost

    def lives_that_drew(self) -> set[object]:
        """The lives that trained anything."""
        return {line["generation"] for line in self._lines() if line["kind"] == "draw"}

    def check(self, done: list[str], *, lost_nodes: tuple[str, ...] = ()) -> None:
        """Everybody came to one end with one model, and every sample of every epoch was trained exactly once."""
        assert len({line.partition(" step ")[2] for line in done}) == 1, done
        account = self.audit()
        assert account.steps_lost == 0
        assert account.absent == ()
        assert len(account.epochs) == EPOCHS
        for epoch in account.epochs.values():
            assert not epoch.missing(NUM_SAMPLES), epoch
            assert not epoch.repeated(), epoch
        assert int(done[0].split(" step ")[1].split()[0]) == account.committed_steps
        left = {path.relative_to(self.folder).parts[0] for path in self.folder.rglob("*.snapshot")}
        assert left <= {f"memory-{name}" for name in lost_nodes}
        assert BATCH * account.committed_steps <= NUM_SAMPLES * EPOCHS

    def _newest_draw(self) -> int:
        begins = [line["generation"] for line in self._lines() if line["kind"] == "begin"]
        return self._last_draw(max(begins)) if begins else -1

    def _last_draw(self, life: int) -> int:
        return max((r["step"] for r in self._lines() if r["kind"] == "draw" and r["generation"] == life), default=-1)

    def _lines(self) -> list[dict[str, object]]:
        return [line for path in self.folder.glob("ledger/*.jsonl") for line in read_ledger(path)]  # type: ignore[misc]


def kill(pid: int) -> None:
    """`kill -9`."""
    os.kill(pid, 9)
