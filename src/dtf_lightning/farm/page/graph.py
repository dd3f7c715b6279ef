"""What comes after what, as a drawing: nodes in columns, each right of all that it comes after. Pure.

Nodes that differ in their matrix alone (`squares[2, 3]`), and come after the same, are folded into one where there are many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

MAX_NODES = 60
"""Above which nodes are folded."""
MAX_DRAWN = 400
"""Above which nothing is drawn: nobody could read it."""
WIDTH, HEIGHT, ACROSS, DOWN = 168, 40, 56, 14
"""Of a node, and between two, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A task, or several that are folded."""

    name: str
    title: str
    state: str
    after: tuple[str, ...] = ()
    """Names of the nodes that it comes after."""
    tasks: tuple[str, ...] = ()
    """Ids."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A node and its place."""

    node: Node
    x: int
    y: int


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """All nodes and lines. `lines`: path data, from a node's right side to another's left."""

    width: int = 0
    height: int = 0
    nodes: tuple[Placed, ...] = ()
    lines: tuple[str, ...] = ()
    too_many: int = 0
    """Nodes, where there are too many to draw."""


@dataclass
class _Group:
    tasks: list[Node] = field(default_factory=list)


def draw(nodes: Sequence[Node]) -> Drawing:
    """Return the drawing of a graph without circles. What a node comes after and is not among the nodes is left out."""
    known = {node.name for node in nodes}
    nodes = [
        Node(
            name=node.name,
            title=node.title,
            state=node.state,
            after=tuple(name for name in node.after if name in known),
            tasks=node.tasks or (node.name,),
        )
        for node in nodes
    ]
    if len(nodes) > MAX_NODES:
        nodes = fold(nodes)
    if len(nodes) > MAX_DRAWN:
        return Drawing(too_many=len(nodes))
    return _place(nodes, columns(nodes))


def columns(nodes: Iterable[Node]) -> dict[str, int]:
    """Return each node's column: 0 for one that comes after nothing, else one more than the greatest before it."""
    by_name = {node.name: node for node in nodes}
    found: dict[str, int] = {}
    for first in by_name:
        stack = [first]
        while stack:
            name = stack[-1]
            missing = [before for before in by_name[name].after if before not in found]
            if name in found or not missing:
                found.setdefault(name, max((found[before] + 1 for before in by_name[name].after), default=0))
                stack.pop()
            else:
                stack += missing
    return found


def fold(nodes: Sequence[Node]) -> list[Node]:
    """Fold nodes that have the same first word of their title and come after the same folded nodes."""
    column = columns(nodes)
    group_of: dict[str, str] = {}
    groups: dict[tuple[str, frozenset[str]], _Group] = {}
    for node in sorted(nodes, key=lambda node: column[node.name]):
        key = base_name(node.title), frozenset(group_of[name] for name in node.after)
        group = groups.setdefault(key, _Group())
        group.tasks.append(node)
        group_of[node.name] = group.tasks[0].name
    return [
        Node(
            name=group.tasks[0].name,
            title=title if len(group.tasks) > 1 else group.tasks[0].title,
            state=worst(node.state for node in group.tasks),
            after=tuple(sorted(after)),
            tasks=tuple(task for node in group.tasks for task in node.tasks),
        )
        for (title, after), group in groups.items()
    ]


def base_name(title: str) -> str:
    """Return a title without what stands in brackets at its end, which tells the instances of a matrix apart."""
    return title.partition("[")[0].strip() or title


ORDER = ("failed", "expired", "cancelled", "skipped", "running", "assigned", "pending", "waiting", "completed")
"""Which state of several is shown: the first of these that there is."""


def worst(states: Iterable[str]) -> str:
    """Return the state by which several tasks are shown."""
    return min(states, key=lambda state: ORDER.index(state) if state in ORDER else len(ORDER))


def _place(nodes: Sequence[Node], column: Mapping[str, int]) -> Drawing:
    rows: dict[int, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: column[node.name]):
        rows.setdefault(column[node.name], []).append(node)
    places: dict[str, Placed] = {}
    for number, members in sorted(rows.items()):
        # Beside what they come after, so that lines cross less: by the mean height of those, then as they came.
        members.sort(key=lambda node: _mean([places[name].y for name in node.after]))
        for row, node in enumerate(members):
            places[node.name] = Placed(node=node, x=number * (WIDTH + ACROSS), y=row * (HEIGHT + DOWN))
    lines = tuple(_line(places[name], placed) for placed in places.values() for name in placed.node.after)
    return Drawing(
        width=max((placed.x + WIDTH for placed in places.values()), default=0),
        height=max((placed.y + HEIGHT for placed in places.values()), default=0),
        nodes=tuple(places.values()),
        lines=lines,
    )


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _line(before: Placed, after: Placed) -> str:
    x, y, to_x, to_y = before.x + WIDTH, before.y + HEIGHT // 2, after.x, after.y + HEIGHT // 2
    middle = (x + to_x) // 2
    return f"M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}"
