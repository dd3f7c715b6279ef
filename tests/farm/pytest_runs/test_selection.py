"""Which tests stay together."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.pytest_runs.selection import collected

TEXT = """
    import pytest

    @pytest.fixture(scope="session")
    def everywhere(): ...
    @pytest.fixture(scope="module")
    def of_module(): ...
    @pytest.fixture(scope="class")
    def of_class(): ...
    @pytest.fixture
    def through(of_module): ...

    def test_alone(everywhere, tmp_path): ...
    def test_alone_too(): ...
    def test_module_1(of_module): ...
    def test_module_2(through): ...

    class TestA:
        def test_1(self, of_class): ...
        def test_2(self, of_class): ...
        def test_alone(self): ...
        def test_module(self, of_class, of_module): ...

    @pytest.mark.farm(together="x")
    class TestB:
        def test_1(self, of_module): ...
    @pytest.mark.farm(together="x")
    def test_b(): ...
    @pytest.mark.xdist_group("x")
    def test_c(): ...
    @pytest.mark.xdist_group(name="x")
    def test_d(of_module): ...
"""


def test_units(pytester, monkeypatch):
    """By the widest scope below the session's that its fixtures have, or by a mark, which comes first."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    items = pytester.getitems("\n".join(line[4:] for line in TEXT.splitlines()))
    units = {}
    for item, test in zip(items, collected(items, pytester.path), strict=True):
        units.setdefault(test.unit, []).append(item.nodeid.partition("::")[2])
    assert sorted(units.values()) == [
        ["TestA::test_1", "TestA::test_2"],
        ["TestA::test_alone"],
        ["TestB::test_1", "test_b"],
        ["test_alone"],
        ["test_alone_too"],
        ["test_c", "test_d"],
        ["test_module_1", "test_module_2", "TestA::test_module"],
    ]
    assert {test.file for test in collected(items, pytester.path)} == {"test_units.py"}


def test_a_setup_of_the_module_keeps_it_together(pytester, monkeypatch):
    """As unittest and nose have it."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    items = pytester.getitems("def setup_module(): ...\ndef test_1(): ...\ndef test_2(): ...")
    assert len({test.unit for test in collected(items, pytester.path)}) == 1


def test_a_test_outside_of_the_repository(pytester, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    items = pytester.getitems("def test_1(): ...")
    with pytest.raises(pytest.UsageError, match="lies outside of"):
        collected(items, tmp_path / "elsewhere")
    with pytest.raises(pytest.UsageError, match="was collected twice"):
        collected([*items, *items], pytester.path)
