"""Whose a thing is that somebody asks for, and what of it is written down."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.security.identity import OWNER, Forbidden, Identity
from dtf_lightning.farm.security.ownership import (
    narrowed_filter,
    narrowed_query,
    refuse_attempt,
    refuse_name,
    refuse_projects,
)
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.security.refusals import EACH, MINUTE, Refusals

NAMES = st.sampled_from(["a", "b", "c", "", "a&project=b", "é"])


def limited(*projects: str) -> Identity:
    return Identity(subject="ann", role=Role.DEVELOPER, token="t", projects=frozenset(projects))


WORKER = Identity(subject="w1", role=Role.WORKER, token="t")


class TestProjects:
    def test_all_of_a_submission(self):
        refuse_projects(OWNER, ["a", "b"])
        refuse_projects(limited("a", "b"), ["a", "b"])
        with pytest.raises(Forbidden, match="limited to the project a, and this is of the projects b, c: ask with"):
            refuse_projects(limited("a"), ["a", "c", "b"])

    @given(
        st.frozensets(NAMES.filter(bool), min_size=1), st.lists(st.tuples(st.sampled_from(["project", "plan"]), NAMES))
    )
    def test_a_list_is_of_one_of_them(self, projects, pairs):
        """Whatever the query says: what the route will read names one of the token's projects."""
        from urllib.parse import urlencode

        try:
            query = narrowed_query(limited(*projects), urlencode(pairs).encode())
        except Forbidden:
            return
        told = parse_qs(query.decode(), keep_blank_values=True)
        assert len(told["project"]) == 1
        assert set(told["project"]) <= projects
        assert told.get("plan", []) == [value for name, value in pairs if name == "plan"]

    def test_what_a_list_must_name(self):
        assert narrowed_query(OWNER, b"plan=x") == b"plan=x"
        assert narrowed_query(limited("a"), b"limit=3") == b"limit=3&project=a"
        with pytest.raises(Forbidden, match=r"name one of them, such as \?project=a"):
            narrowed_query(limited("a", "b"), b"")
        with pytest.raises(Forbidden):
            narrowed_query(limited("a"), b"project=b")

    def test_updates(self):
        assert narrowed_filter(OWNER, {}) == {}
        assert narrowed_filter(limited("a"), {"status": frozenset({"x"})}) == {
            "status": frozenset({"x"}),
            "project": frozenset({"a"}),
        }
        assert narrowed_filter(limited("a", "b"), {"project": frozenset({"b", "c"})}) == {"project": frozenset({"b"})}
        with pytest.raises(Forbidden):
            narrowed_filter(limited("a"), {"project": frozenset({"b"})})


class TestWorkers:
    def test_its_own_name(self):
        assert (WORKER.worker, OWNER.worker) == ("w1", None)
        refuse_name(WORKER, "w1")
        refuse_name(OWNER, "w2")
        with pytest.raises(Forbidden, match="of the worker 'w1', and speaks for no other, as here for 'w2'"):
            refuse_name(WORKER, "w2")

    def test_its_own_attempts(self):
        refuse_attempt(WORKER, "t", ("w0", "w1"))
        refuse_attempt(OWNER, "t", ())
        for others in ((), ("w2",)):
            with pytest.raises(Forbidden, match="makes no such attempt at the task t"):
                refuse_attempt(WORKER, "t", others)


class TestRefusals:
    def test_many_are_a_number(self):
        refusals = Refusals()
        lines = [line for _ in range(EACH + 90) for line in refusals.refused(100.0, 401, {"path": "/x"})]
        assert lines == [{"path": "/x", "status": 401}] * EACH
        assert refusals.refused(100.0 + MINUTE, 403, {}) == [{"refused": {"401": 90}, "since": 100.0}, {"status": 403}]

    def test_few_are_themselves(self):
        refusals = Refusals()
        assert refusals.refused(100.0, 401, {}) == [{"status": 401}]
        assert refusals.past(99999.0) == []
        assert refusals.rest() == []

    def test_the_rest_is_told_at_the_end(self):
        refusals = Refusals()
        for _ in range(EACH + 2):
            refusals.refused(100.0, 403, {})
        assert refusals.rest() == [{"refused": {"403": 2}, "since": 100.0}]
        assert refusals.rest() == []

    @given(st.lists(st.tuples(st.floats(0, 10 * MINUTE), st.sampled_from([401, 403])), max_size=200))
    def test_none_is_lost_and_the_lines_are_few(self, asked):
        """Whatever the times: lines and numbers together are all refusals."""
        refusals, lines, now = Refusals(), [], 0.0
        for step, status in asked:
            now += step
            lines += refusals.refused(now, status, {})
        lines += refusals.rest()
        assert sum(sum(line["refused"].values()) if "refused" in line else 1 for line in lines) == len(asked)
        assert len(lines) <= (EACH + 1) * (now // MINUTE + 1)
