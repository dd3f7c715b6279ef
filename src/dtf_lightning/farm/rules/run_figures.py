"""What the parts of a training have reported of their run, as one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

GENERATION, GOODPUT = "generation", "goodput"
OF_THE_WORLD = (GENERATION, "world_size", "step", "samples_per_second")


def together(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return a run's figures by what its parts have reported of it; nothing if none has.

    What is the whole world's is that of the part which is furthest: a part that has left, or is frozen, knows older things. The
    goodput is the mean of the parts'.

    Args:
        parts: the figures of each, by the names of `--rdzv-conf progress`; others are passed over.
    """
    told = [part for part in parts if GENERATION in part]
    if not told:
        return {}
    furthest = max(told, key=lambda part: (part[GENERATION], part.get("step", 0.0)))
    figures = {name: furthest[name] for name in OF_THE_WORLD if name in furthest}
    shares = [part[GOODPUT] for part in told if GOODPUT in part]
    return figures | ({GOODPUT: round(sum(shares) / len(shares), 4)} if shares else {})
