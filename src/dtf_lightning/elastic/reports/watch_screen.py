"""`dtf watch` on a terminal: one screen that redraws itself. Importing this module needs the extra `rich`."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dtf_lightning.elastic.reports.watch import ASCII_BLOCKS, BLOCKS, WatchedRun, phase_words, sparkline

ROLE_STYLES = {
    "member": "green", "leaver": "yellow", "out": "red", "joiner": "cyan", "spare": "blue", "starting": "dim",
    "ended": "dim red",
}  # fmt: skip
PHASE_STYLES = {"running": "bold green", "paused": "bold yellow", "finished": "bold blue", "aborted": "bold red"}
OTHER_LINES = 12
"""The lines of the screen that are not for nodes or events."""


class LiveScreen:
    """Redraws itself four times a second, also while etcd keeps the caller waiting."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out)
        self._run: WatchedRun | None = None
        self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)

    def __enter__(self) -> LiveScreen:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)  # the cursor comes back, the last picture stays

    def show(self, run: WatchedRun) -> None:
        self._run = run
        if run.over:
            self._live.refresh()

    def _draw(self) -> RenderableType:
        run = self._run
        if run is None:
            return Text("...")
        parts: list[RenderableType] = [_head(run)]
        if run.problem:
            parts.append(Text(f"{run.problem} (for {time.monotonic() - run.since:.0f} s)", style="bold yellow"))
        num_nodes = len(run.status.nodes) if run.status is not None else 0
        if num_nodes:
            parts.append(_nodes(run))
        width = self._console.width - 22
        if run.losses:
            utf8 = (self._console.encoding or "").lower().startswith("utf")
            line = sparkline(list(run.losses), width, BLOCKS if utf8 else ASCII_BLOCKS)
            parts.append(Text.assemble(("loss ", "dim"), (line, "cyan"), f" {run.losses[-1]:.4g}"))
        room = max(3, self._console.height - OTHER_LINES - num_nodes)
        events = list(run.events)[-room:]
        if events:
            lines = [
                Text.assemble((time.strftime("%H:%M:%S ", time.localtime(at)), "dim"), words) for at, words in events
            ]
            parts.append(Panel(Group(*lines), title="what happened", title_align="left", border_style="dim"))
        return Panel(Group(*parts), title=f"run {run.run_id}", title_align="left")


def _head(run: WatchedRun) -> Text:
    status = run.status
    if status is None:
        return Text("")
    phase = phase_words(status)
    text = Text(phase, style=PHASE_STYLES.get(phase, "bold"))
    if status.generation is not None:
        generation = status.generation
        text.append(f"  generation {generation.number} ({generation.kind})  ", style="default")
        text.append(f"{generation.world_size} workers on {len(generation.members)} nodes", style="default")
        text.append(f" of {status.min_nodes} to {status.max_nodes}", style="dim")
    if run.step:
        text.append(f"  epoch {run.epoch}  step {run.step}  {run.samples_per_second:.0f} samples/s", style="default")
    if status.reason:
        text.append(f"\n{status.reason}", style="dim")
    return text


def _nodes(run: WatchedRun) -> Table:
    assert run.status is not None
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("node", "role", "state", "ranks"):
        table.add_column(name)
    for name in ("step", "steps/s", "memory"):
        table.add_column(name, justify="right")
    table.add_column("")
    for node in run.status.nodes:
        ranks = f"{node.ranks.start}-{node.ranks.stop - 1}" if len(node.ranks) > 1 else ""
        ranks = ranks or (str(node.ranks.start) if node.ranks else "-")
        view = run.of_node(node.node)
        numbers = ("-", "-", "-")
        if view is not None:
            numbers = (str(view.step), f"{view.steps_per_second:.1f}", f"{view.memory / 2**20:.0f} MiB")
        star = "leader" if node.node == run.status.leader else ""
        table.add_row(
            node.node, Text(node.role.value, style=ROLE_STYLES[node.role.value]), node.state, ranks, *numbers,
            Text(node.detail or star, style="dim"),
        )  # fmt: skip
    return table
