"""A task's matrix: its axes multiplied out, less what is excluded, and what is included besides.

Rules that this file guards:
- Values are texts as they were written: a version `3.10` is not the number 3.1.
- The order is that of the product with the first axis slowest; what is included follows. Nothing stands there twice.
- What an exclusion names must be there, and an inclusion names every axis: a typo is an error, never a task more or less.
- A product over the limit is refused before it is made.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

from dtf_lightning.farm.plans.plan import MAX_TASKS, Cell
from dtf_lightning.settings.marked_yaml import Node, nearest

_RESERVED = ("include", "exclude")
_AXIS = re.compile(r"[A-Za-z_][\w-]*")
_TEMPLATE = re.compile(r"\{\{\s*matrix\.([\w-]+)\s*\}\}")


def read_matrix(node: Node) -> tuple[Cell, ...]:
    """Return the instances of a matrix. Raises `SettingsError`."""
    parts = node.mapping("matrix")
    axes = {name: _values(name, one, node) for name, one in parts.items() if name not in _RESERVED}
    size = math.prod(map(len, axes.values())) if axes else 0
    if size > MAX_TASKS:
        raise node.error(f"this matrix has {size} instances, {MAX_TASKS} are allowed")
    included = [_cell(one, "an inclusion") for one in _listed(parts, "include")]
    names = tuple(axes) or tuple(included[0] if included else ())
    if not names:
        raise node.error("a matrix has at least one axis, such as `python: ['3.11', '3.12']`")
    excluded = [_cell(one, "an exclusion") for one in _listed(parts, "exclude")]
    for one, cell in zip(_listed(parts, "exclude"), excluded, strict=True):
        for name, value in cell.items():
            if name not in axes:
                raise one.keys[name].error(f"the matrix has no axis {name!r}{nearest(name, axes)}")
            if value not in axes[name]:
                raise one.value[name].error(f"the axis {name!r} has no value {value!r}{nearest(value, axes[name])}")
    product = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    cells = [cell for cell in product if not any(out.items() <= cell.items() for out in excluded)] if axes else []
    known = {tuple(cell.values()) for cell in cells}
    for one, cell in zip(_listed(parts, "include"), included, strict=True):
        if cell.keys() != set(names):
            raise one.error(f"an inclusion names each axis of the matrix ({', '.join(names)}), got {', '.join(cell)}")
        ordered = {name: cell[name] for name in names}
        if (values := tuple(ordered.values())) in known:
            raise one.error(f"the matrix has {', '.join(values)} already")
        known.add(values)
        cells.append(ordered)
    if len(cells) > MAX_TASKS:
        raise node.error(f"this matrix has {len(cells)} instances, {MAX_TASKS} are allowed")
    if not cells:
        raise node.error("nothing is left of this matrix: its exclusions cover it wholly")
    return tuple(cells)


def filler(cell: Cell | None) -> Callable[[Node, str], str]:
    """Return what replaces each `{{matrix.x}}` in a text by the instance's value; other braces stay as they are.

    The node of its call says where the text stands: a name that is no axis raises `SettingsError`.
    """

    def fill(node: Node, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            if cell is None:
                raise node.error(f"{match[0]} stands in a task without a matrix")
            if name not in cell:
                raise node.error(f"{match[0]}: the matrix has no axis {name!r}{nearest(name, cell)}")
            return cell[name]

        return _TEMPLATE.sub(value, text)

    return fill


def _values(name: str, node: Node, matrix: Node) -> list[str]:
    if not _AXIS.fullmatch(name):
        raise matrix.keys[name].error(f"the axis {name!r} must be a word of letters, digits, '_' and '-'")
    values = []
    for one in node.sequence(f"the axis {name!r}"):
        value = one.scalar(f"a value of the axis {name!r}")
        if value in values:
            raise one.error(f"the axis {name!r} has the value {value!r} twice")
        values.append(value)
    if not values:
        raise node.error(f"the axis {name!r} has no values")
    return values


def _listed(parts: dict[str, Node], name: str) -> list[Node]:
    return parts[name].sequence(name) if name in parts else []


def _cell(node: Node, what: str) -> dict[str, str]:
    cell = {name: one.scalar(f"{what}'s {name!r}") for name, one in node.mapping(what).items()}
    if not cell:
        raise node.error(f"{what} names axes and their values, got nothing")
    return cell
