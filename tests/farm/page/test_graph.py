"""What comes after what, as a drawing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.page.graph import MAX_DRAWN, MAX_NODES, Node, columns, draw


def node(name: str, *after: str, state: str = "pending") -> Node:
    return Node(name=name, title=name, state=state, after=after)


@st.composite
def graphs(draw_from) -> list[Node]:
    """Of up to a hundred nodes, in any order."""
    number = draw_from(st.integers(0, 100))
    nodes = [
        node(f"n{index % 7}[{index}]", *{f"n{other % 7}[{other}]" for other in before if other < index})
        for index, before in enumerate(
            draw_from(st.lists(st.lists(st.integers(0, 99), max_size=3), min_size=number, max_size=number))
        )
    ]
    return draw_from(st.permutations(nodes))


@given(graphs())
def test_every_line_goes_to_the_right_and_no_node_covers_another(nodes):
    drawing = draw(nodes)
    place = {placed.node.name: placed for placed in drawing.nodes}
    assert len({(placed.x, placed.y) for placed in drawing.nodes}) == len(drawing.nodes)
    for placed in drawing.nodes:
        assert all(place[name].x < placed.x for name in placed.node.after)
    assert len(drawing.lines) == sum(len(placed.node.after) for placed in drawing.nodes)
    assert sorted(task for placed in drawing.nodes for task in placed.node.tasks) == sorted(one.name for one in nodes)


def test_columns_are_the_longest_way():
    nodes = [node("d", "b", "c"), node("c", "b"), node("b", "a"), node("a")]
    assert columns(nodes) == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_a_chain_of_two_thousand():
    """No recursion, however deep."""
    chain = [node(str(number), *([str(number - 1)] if number else [])) for number in range(2000)]
    assert columns(chain)["1999"] == 1999


def test_a_matrix_is_folded_where_there_are_many():
    states = ["completed"] * 50 + ["failed"] + ["running"] * 20
    squares = [node(f"squares[{number}]", "numbers", state=state) for number, state in enumerate(states)]
    drawing = draw([node("numbers", state="completed"), *squares, node("sum", *(one.name for one in squares))])
    assert [placed.node.title for placed in drawing.nodes] == ["numbers", "squares", "sum"]
    folded = drawing.nodes[1].node
    assert (len(folded.tasks), folded.state) == (len(squares), "failed")
    assert len(draw([node("numbers"), *squares[: MAX_NODES - 2]]).nodes) == MAX_NODES - 1


def test_too_many_and_none():
    assert draw([node(f"{number} alone") for number in range(MAX_DRAWN + 1)]).too_many == MAX_DRAWN + 1
    assert draw([]).nodes == ()


def test_what_is_not_among_them_is_left_out():
    assert draw([node("b", "archived long ago")]).lines == ()
