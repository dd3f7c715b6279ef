"""Prints the table of docs/checkpoints-and-divergence.md: false alarms and detection on simulated curves.

python docs/divergence_table.py [--write]    (a few seconds; tests/elastic/numerics/test_divergence_detector.py holds the page to it)
"""

from __future__ import annotations

import sys
from pathlib import Path

from dtf_lightning.elastic.testkit.loss_curves import SHAPES, Row, table

PAGE = Path(__file__).with_name("checkpoints-and-divergence.md")
BEGIN = "<!-- table: written by docs/divergence_table.py -->\n"
END = "<!-- end -->"
NUM_CURVES = 200 // len(SHAPES)


def text(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| clean curve | curves | false alarms | spikes found | drifts found |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.shape} | {row.num_curves} | {row.false_alarms} | {row.spikes:.1%} | {row.drifts:.1%} |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    made = text(list(table(NUM_CURVES)))
    print(made)
    if "--write" in sys.argv:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(head + BEGIN + made + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
