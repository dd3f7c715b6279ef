"""Tables of text, and what a task used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows below their head, each column as wide as it must be."""
    widths = [max(len(str(row[number])) for row in [head, *rows]) for number in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_use(metadata: Mapping[str, Mapping[str, float]]) -> None:
    """Print what a task had asked for beside what it used."""
    asked, used = metadata.get("requested", {}), metadata.get("used", {})
    if "cpu" in used:
        whole = f"asked {asked['cpu']:g} core{'' if asked['cpu'] == 1 else 's'}, " if "cpu" in asked else ""
        print(f"  cores: {whole}used {used['cpu']:.2g} on average")
    if "memory" in used:
        whole = f"asked {_memory(asked['memory'])}, " if "memory" in asked else ""
        print(f"  memory: {whole}used {_memory(used['memory'])} at most")


def _memory(mebibytes: float) -> str:
    return f"{mebibytes / 1024:.3g} GiB" if mebibytes >= 1024 else f"{mebibytes:.3g} MiB"
