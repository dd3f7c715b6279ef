"""Writes a run's account as text for terminals or as Markdown, and several runs side by side."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from dtf_lightning.database.formats import format_rows
from dtf_lightning.elastic.reports.report_data import BUCKETS, PHASES

LABELS = {
    "productive": "productive", "data_wait": "waiting for data", "validation": "validation", "checkpoint": "checkpoints",
    "startup": "start-up", "waiting": "waiting for peers", "rescale_unwind": "rescale: unwind",
    "rescale_group": "rescale: group", "rescale_state": "rescale: state", "rescale_wrap": "rescale: wrap",
    "rescale_first_step": "rescale: first step", "lost": "lost work",
}  # fmt: skip
"""The names of the buckets, for people."""


GAP = "  "
"""What lies between two columns."""
NARROWEST = 12
"""The width to which a column may be narrowed for a narrow terminal."""


@dataclass(frozen=True)
class Style:
    """How a report is laid out: as Markdown, or as text of at most so many columns (`None`: as wide as it takes)."""

    markdown: bool = False
    width: int | None = None


PLAIN = Style()


def lines(account: dict[str, Any], *, style: Style = PLAIN) -> list[str]:
    """Return the lines of the whole account."""
    markdown = style.markdown
    run, goodput = account["run"], account["goodput"]
    title = f"run {run['run']}"
    found = [f"# {title}" if markdown else title, ""]
    found += [
        (
            f"{run['started']}, {duration(run['seconds'])}; {run['steps'] or 0} steps in {run['generations'] or 0} "
            f"generations{_of_instances(run)} by {run['workers']} workers"
        ),
        (
            f"goodput {goodput['goodput']:.1%} of {duration(goodput['wall'])} worker time "
            f"({goodput['after_startup']:.1%} without start-up)"
            if goodput["wall"]
            else "no worker has written down what its time went into"
        ),
    ]
    found += [f"attention: {line}" for line in warnings(account)]
    found += ["", *heading("Generations", style)]
    found += table(
        ("generation", "why", "world", "at step", "pause ms", "worst"),
        [
            (g["label"], g["reason"], g["world_size"], g["step"], milliseconds(g["pause"]),
             milliseconds(g["worst_pause"]))
            for g in account["generations"]
        ],
        style,
    )  # fmt: skip
    found += _pauses(account, style)
    found += ["", *heading("Where the time went", style)] if goodput["wall"] else []
    found += table(
        ("bucket", "seconds", "share") if goodput["wall"] else (),
        [
            (LABELS[bucket], f"{goodput['total'][bucket]:.2f}", f"{goodput['total'][bucket] / goodput['wall']:.1%}")
            for bucket in BUCKETS
            if goodput["total"][bucket]
        ],
        style,
    )
    if account["paces"]:
        found += ["", *heading("Workers beside the median", style)]
        found += table(
            ("worker", "busy ms of a step", "relative"),
            [(pace["worker"], f"{1000 * pace['busy']:.1f}", f"{pace['relative']:.2f}") for pace in account["paces"]],
            style,
        )
    if account["audits"]:
        names = ("epoch", "consumed", "missing", "repeated", "padding")
        found += ["", *heading("Samples", style)]
        found += table(names, [[audit[name] for name in names] for audit in account["epochs"]], style)
    found += _checkpoints(account, style) + _environment(account, style)
    return found if style.width is None else [piece for line in found for piece in _wrapped(line, style.width)]


def _of_instances(run: dict[str, Any]) -> str:
    if run["instances"] == 1:
        return ""
    return f" of {run['instances']} instances (2.1 is the first generation of the second)"


def _pauses(account: dict[str, Any], style: Style) -> list[str]:
    rows = [
        (g["label"], g["rescale"], *(milliseconds(g[phase]) for phase in PHASES))
        for g in account["generations"]
        if g["pause"] is not None
    ]
    if not rows:
        return []
    head = ("generation", "rescale", *(phase.replace("_", " ") for phase in PHASES))
    return ["", *heading("Pauses by phase, ms", style), *table(head, rows, style)]


def _checkpoints(account: dict[str, Any], style: Style) -> list[str]:
    if not account["checkpoints"]:
        return []
    rows = [
        (c["step"], c["epoch"], PurePath(c["path"]).name, c["size"], milliseconds(c["seconds"]),
         "pruned" if c["pruned"] else "kept")
        for c in account["checkpoints"]
    ]  # fmt: skip
    head = ("step", "epoch", "file", "bytes", "took ms", "")
    return ["", *heading("Checkpoints", style), *table(head, rows, style)]


def _environment(account: dict[str, Any], style: Style) -> list[str]:
    """Describe what is trained and the nodes' hardware; what differs between nodes is listed by node."""
    rows = [(key.replace("_", " "), _value(value)) for key, value in account["description"].items()]
    nodes = account["hardware"]
    for key in dict.fromkeys(key for hardware in nodes.values() for key in hardware):
        values = {node: _value(hardware.get(key)) for node, hardware in nodes.items()}
        if len(set(values.values())) == 1:
            rows.append((key.replace("_", " "), next(iter(values.values()))))
        elif key != "disk_free":
            rows += [(f"{key.replace('_', ' ')} of {node}", value) for node, value in values.items()]
    if not rows:
        return []
    return ["", *heading("Environment", style), *table(("", ""), rows, style)]


def _value(value: Any) -> str:
    return "-" if value is None or value == [] else value if isinstance(value, str) else json.dumps(value)


def warnings(account: dict[str, Any]) -> list[str]:
    """Return what is not as one would wish."""
    found = [
        f"epoch {audit['epoch']}: {audit['missing']} samples missing, {audit['repeated']} repeated"
        for audit in account["audits"]
        if audit["complete"] and (audit["missing"] or audit["repeated"])
    ]
    found += [f"the nodes differ: {difference}" for difference in account["differences"]]
    found += [
        f"{slow['worker']} is slow: busy {1000 * slow['busy']:.1f} ms of a step, {slow['relative']:.2f} times the median "
        f"worker; all others wait for it"
        for slow in account["stragglers"]
    ]
    if account["corrupt"]:
        first = account["corrupt"][0]
        found.append(
            f"{len(account['corrupt'])} corrupt lines in the logs, the first: {first['file']}:{first['line']}: "
            f"{first['problem']}"
        )
    return found


def comparison(accounts: Sequence[dict[str, Any]], *, style: Style = PLAIN) -> list[str]:
    """Return the lines of several accounts side by side."""

    def row(label: str, values: Iterable[Any]) -> list[Any]:
        return [label, *values]

    body = [
        row("steps", (a["run"]["steps"] for a in accounts)),
        row("seconds", (f"{a['run']['seconds']:.1f}" for a in accounts)),
        row("generations", (a["run"]["generations"] for a in accounts)),
        row("goodput", (f"{a['goodput']['goodput']:.1%}" for a in accounts)),
        row("last loss", (_last(a["curves"]["loss"]) for a in accounts)),
        row("worst pause ms", (milliseconds(max((r["pause"] for r in a["rescales"]), default=None)) for a in accounts)),
    ]
    body += [
        row(metric, (_last([value for _, value in a["evaluations"].get(metric, [])]) for a in accounts))
        for metric in sorted({metric for a in accounts for metric in a["evaluations"]})
    ]
    body += [
        row(f"{LABELS[bucket]} s", (f"{a['goodput']['total'][bucket]:.2f}" for a in accounts))
        for bucket in BUCKETS
        if any(a["goodput"]["total"][bucket] for a in accounts)
    ]
    return table(("", *(a["run"]["run"] for a in accounts)), body, style)


def _last(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{known[-1]:.4g}" if known else "-"


def heading(text: str, style: Style) -> list[str]:
    """Return a section's heading, underlined or with Markdown's marks."""
    return [f"## {text}", ""] if style.markdown else [text, "-" * len(text)]


def table(head: Sequence[str], body: Iterable[Sequence[Any]], style: Style) -> list[str]:
    """Return the lines of a table: aligned columns that fit into the style's width, or Markdown's.

    Long cells are broken. Where even that does not help, each row is a block of its own with a line for each column.
    """
    rows = [["-" if cell is None else str(cell) for cell in row] for row in (head, *body)]
    if not head:
        return []
    if style.markdown:
        return format_rows(rows[0], rows[1:], "markdown").split("\n")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if style.width is not None:
        widths = _narrowed(widths, style.width)
        if sum(widths) + len(GAP) * (len(widths) - 1) > style.width:
            return [line for row in rows[1:] for line in (*_block(rows[0], row), "")][:-1]
    return [line for row in rows for line in _aligned(row, widths)]


def _narrowed(widths: Sequence[int], width: int) -> list[int]:
    """Take from the widest columns until the table fits, or until none is wider than `NARROWEST`."""
    widths = list(widths)
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    pieces = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths, strict=True)]
    return [
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(*pieces, fillvalue="")
    ]


def _block(head: Sequence[str], row: Sequence[str]) -> list[str]:
    return [f"{name}: {cell}" if name else cell for name, cell in zip(head, row, strict=True)]


def _wrapped(line: str, width: int) -> list[str]:
    return [line] if len(line) <= width else textwrap.wrap(line, width)


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds without the unit; a dash for an unknown value."""
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


def duration(seconds: float) -> str:
    """Return seconds as text for people: `42 s`, `3 min 5 s`, `2 h 7 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
