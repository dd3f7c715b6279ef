"""Tables and drawings as files: whatever is in them, and numbers on a drawing where they belong."""

from __future__ import annotations

import csv
import io
import json

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.page.charts.borrowings import draw_borrowings
from dtf_lightning.farm.page.charts.series import EDGE, HEIGHT, LEFT, WIDTH, draw_series
from dtf_lightning.farm.page.saving.file import chart_style, without_actions
from dtf_lightning.farm.page.saving.tables import FORMATS, flat, write_table
from dtf_lightning.farm.record.task_id import instance_id
from dtf_lightning.farm.results.tests.course import Told

VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text())
ROWS = st.lists(st.dictionaries(st.sampled_from(["a", "b", "=c", ""]), VALUES, max_size=4), max_size=5)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS)
def test_any_values_can_be_saved(rows):
    """All formats take them; CSV and Parquet have a row for each, and no cell of CSV begins as a formula does."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for form in FORMATS:
        data = write_table(rows, form)
        if form == "json":
            assert len(json.loads(data)) == len(rows)
        elif form == "parquet" and columns:
            table = pq.read_table(io.BytesIO(data))
            assert (table.num_rows, table.column_names) == (len(rows), columns)
        elif form == "csv" and columns:
            cells = [cell for row in csv.reader(io.StringIO(data.decode(), newline="")) for cell in row]
            texts = {value for row in rows for value in row.values() if isinstance(value, str)}
            assert not [text for text in texts if text[:1] in ("=", "+", "-", "@") and text in cells]


def test_objects_are_columns_and_lists_are_texts():
    assert flat({"a": 1, "b": {"c": {"d": 2}, "e": [1, "x"]}}) == {"a": 1, "b.c.d": 2, "b.e": '[1, "x"]'}


def test_what_a_file_has_no_use_for_is_left_out():
    html = '<a href="/x">x</a><button type="button" hx-post="/do">no</button><form>a<input></form><a href="?a=1">y</a><b>z</b>'
    assert without_actions(html, "http://c:1", "/tasks/t") == (
        '<a href="http://c:1/x">x</a><a href="http://c:1/tasks/t?a=1">y</a><b>z</b>'
    )


def test_a_drawing_has_its_colours_with_it():
    assert "--card: #ffffff" in chart_style()
    assert "--card: #171e2a" not in chart_style()
    assert "svg .point" in chart_style()


def told(*values: float, **fields: object) -> Told:
    return Told(unit="s", values=values, tasks=tuple(f"t{place}" for place in range(len(values))), **fields)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=50))
def test_points_lie_in_the_drawing_in_their_order(values):
    drawing = draw_series(told(*values, low=min(values) / 2, high=max(values) * 2))
    assert [point.x for point in drawing.points] == sorted(point.x for point in drawing.points)
    assert all(LEFT <= point.x <= WIDTH and EDGE <= point.y <= HEIGHT - EDGE for point in drawing.points)
    for one, other in zip(drawing.points, drawing.points[1:], strict=False):
        assert one.y == other.y or (one.y < other.y) == (one.value > other.value)


def test_nothing_is_drawn_of_nothing():
    for values in ((), (1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))):
        assert draw_series(told(*values)) is None
    assert draw_series(told(1.0, 1.0)) is not None


def test_borrowings_are_bars_of_their_length():
    array = "0190a0a0-0000-7000-8000-000000000000"

    def one(part: int, left: str, back: str | None) -> dict:
        return {"part": instance_id(array, part), "left": left, "back": back, "wanted_by": "<b>"}

    drawing = draw_borrowings(
        [
            one(3, "2027-01-01T00:00:10Z", None),
            one(0, "2027-01-01T00:00:00Z", "2027-01-01T00:00:10Z"),
            one(0, "2027-01-01T00:00:15Z", "2027-01-01T00:00:20Z"),
        ],
        "2027-01-01T00:00:20Z",
    )
    assert [lane.text for lane in drawing.lanes] == ["part 0", "part 3"]
    assert [bar.open for bar in drawing.bars] == [True, False, False]
    assert [round(bar.width / drawing.bars[2].width, 1) for bar in drawing.bars] == [2.0, 2.0, 1.0]
    assert drawing.bars[0].x == drawing.bars[1].x + drawing.bars[1].width
    assert draw_borrowings([], "") is None
    assert draw_borrowings([{**one(0, "", None), "left": None}], "2027-01-01T00:00:00Z") is None
