"""Lightning's progress bars through rescales: one of each, with the world beside it, closed when it is over."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from support.elastic.run_of_one import Disturbance, RunOfOne, fit

if TYPE_CHECKING:
    import pytest

PLACES = [
    ("training_step", 3, "planned"), ("on_validation_batch_start", 6, "told"), ("validation_step", 12, "collective"),
    ("on_validation_end", 18, "told"), ("training_step", 14, "told"),
]  # fmt: skip
DISTURBANCES = [Disturbance(place, step, kind) for place, step, kind in PLACES]


class Terminal(io.StringIO):
    """Takes control characters."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines that a person sees in the end, of what tqdm wrote: text, returns, newlines and cursor-up."""
    rows: dict[int, list[str]] = {0: []}
    row = column = 0
    for part in re.findall(r"\x1b\[A|[\r\n]|[^\r\n\x1b]", written):
        match part:
            case "\r":
                column = 0
            case "\n":
                row, column = row + 1, 0
            case "\x1b[A":
                row -= 1
            case _:
                line = rows.setdefault(row, [])
                line[column:] = [*([" "] * (column - len(line))), part, *line[column + 1 :]]
                column += 1
    return [text for _, line in sorted(rows.items()) if (text := "".join(line).rstrip())]


class LookAtTqdm(Callback):
    """How many bars of each kind are open in a batch, and what the training bar says."""

    def __init__(self) -> None:
        self.most_open = 0
        self.seen: set[tuple[int, int]] = set()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._look(1)
        bar = trainer.progress_bar_callback.train_progress_bar
        self.seen.add((bar.n, bar.total))

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self._look(2)

    def _look(self, expected: int) -> None:
        num_open = len([bar for bar in Tqdm._instances if not bar.disable])
        assert num_open == expected
        self.most_open = max(self.most_open, num_open)


def test_tqdm(tmp_path: Path, run: RunOfOne, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rescales in a step and in three validations: never two bars of one kind, each batch counted once, none left open."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    look = LookAtTqdm()
    fit(
        tmp_path, elastic=True, run=run, disturbances=DISTURBANCES, enable_progress_bar=True,
        callbacks=[TQDMProgressBar(), look],
    )  # fmt: skip
    assert look.most_open == 2
    assert {n for n, _ in look.seen} == set(range(6))
    assert {total for _, total in look.seen} == {6}
    assert not [bar for bar in Tqdm._instances if not bar.disable]
    (left,) = screen(terminal.getvalue())
    assert re.match(rf"Epoch 2: 100%.* 6/6 .*world=1, gen={run.num_generations()}", left)


class LookAtRich(Callback):
    """Which tasks are to be seen."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        bar = trainer.progress_bar_callback
        visible = [task for task in bar.progress.tasks if task.visible]
        assert [task.id for task in visible] == [bar.train_progress_bar_id]
        assert visible[0].total == 6
        self.metrics.append(dict(bar._metric_component._metrics))

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        assert len([task for task in trainer.progress_bar_callback.progress.tasks if task.visible]) <= 2


def test_rich(tmp_path: Path, run: RunOfOne) -> None:
    """The same of rich's."""
    bar, look = RichProgressBar(console_kwargs={"file": Terminal(), "force_terminal": True}), LookAtRich()
    fit(
        tmp_path, elastic=True, run=run, disturbances=DISTURBANCES, enable_progress_bar=True, callbacks=[bar, look],
    )  # fmt: skip
    assert look.metrics[-1]["world"] == "1"
    assert look.metrics[-1]["gen"] == str(run.num_generations() - 1)  # one more came in the last validation
    assert bar._progress_stopped
