"""What is sent of functions, and how values and exceptions come back, without a farm."""

from __future__ import annotations

import os
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import cloudpickle
import pytest

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.calls.making import CannotCall
from dtf_lightning.farm.calls.pickles import (
    PYTHON,
    AnotherPython,
    RemoteTraceback,
    call_pickled,
    joined,
    keep_exception,
    part,
    pickled,
    unpickle,
)
from dtf_lightning.farm.calls.returned import as_json
from dtf_lightning.farm.calls.spelling import ARGUMENTS, FUNCTION, PICKLES
from dtf_lightning.farm.functions.calls import request_fields
from dtf_lightning.farm.functions.future import Future
from dtf_lightning.farm.functions.sending import CHUNK, name_of, pack_calls
from dtf_lightning.farm.functions.values import TaskFailed, value_of


def digest(reference: str) -> str:
    return reference.removeprefix("sha256:")


class TestSending:
    def test_small_calls_are_two_files(self):
        """However many they are; a large argument is in a file that no other call gets."""
        packed = pack_calls(max, [((number, 1), {}) for number in range(1000)])
        assert len(packed.files) == 2
        assert [request["index"] for request in packed.requests] == list(range(1000))
        large = bytes(CHUNK)
        packed = pack_calls(len, [((large,), {}), ((b"x",), {}), ((b"y",), {})])
        first, second, third = packed.requests
        assert (first["arguments"] == second["arguments"], second["arguments"] == third["arguments"]) == (False, True)
        assert [request["index"] for request in packed.requests] == [0, 0, 1]
        assert all(len(data) < CHUNK for name, data in packed.files.items() if name != digest(first["arguments"]))

    def test_equal_functions_are_one_file(self):
        one, other = pack_calls(max, [((1,), {})]), pack_calls(max, [((2,), {})])
        assert one.requests[0]["function"] == other.requests[0]["function"]

    @pytest.mark.parametrize(
        ("function", "argument", "told"),
        [
            (lambda _: HERE_LOCK, 1, "the function TestSending.<lambda> cannot be pickled (TypeError: cannot pickle"),
            (len, threading.Lock(), "an argument of len cannot be pickled (TypeError: cannot pickle '_thread.lock'"),
            (
                len,
                Future(None, "id", "f", is_pickled=True),
                "an argument of len cannot be pickled (TypeError: a future",
            ),
        ],
    )
    def test_what_cannot_be_pickled(self, function, argument, told):
        with pytest.raises(SettingsError) as refused:
            pack_calls(function, [((argument,), {})])
        assert str(refused.value).startswith(told)

    def test_names(self):
        assert name_of(self.test_names) == "TestSending.test_names"
        assert name_of(type("Callable", (), {"__call__": len})()) == "Callable"

    def test_fields(self):
        future = Future(None, "id", "f", is_pickled=True)
        fields = request_fields(name="n", needs={"gpu": 1}, labels=["fast"], after=[future, "other"], retries=2)
        assert fields == {
            "name": "n",
            "needs": [{"amounts": {"gpu": 1}, "labels": ["fast"]}],
            "dependencies": ["id", "other"],
            "retries": 2,
        }


HERE_LOCK = threading.Lock()


class TestOnAWorker:
    @pytest.fixture
    def call(self, tmp_path, monkeypatch):
        """Makes a call in a task's folder; returns what is told, and where its files are."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / PICKLES).mkdir()

        def make(function, *arguments, python=PYTHON, **named):
            Path(FUNCTION).write_bytes(joined([pickled("f", function)], python))
            Path(ARGUMENTS).write_bytes(joined([b"no pickle", pickled("a", (arguments, named))], PYTHON))
            return call_pickled(1, tmp_path)

        return make

    def test_what_json_gives_back_travels_as_json(self, call):
        """Type for type; all else is a pickle, in a file."""
        assert call(lambda a, b: a + b, 1, b=2) == {"value": 3}
        assert call(lambda: {"a": [None, 1.5]}) == {"value": {"a": [None, 1.5]}}
        assert call(lambda: "x" * 2000) == {"artifact": "value.json"}
        for value in ((1, 2), {1: 2}, float("inf"), {1, 2}, [(1,)], "\ud800", 2**70 - 0.5, True + 1j):
            assert as_json(value) is None or type(value) is float
            told = call(lambda value: value, value)
            if "value" not in told:
                assert told == {"artifact": "value.pickle", "python": PYTHON}
                back = unpickle(Path("value.pickle").read_bytes(), "it")
                assert (back, type(back)) == (value, type(value))

    def test_another_python(self, call):
        """Both versions are named, and nothing is unpickled."""
        with pytest.raises(CannotCall, match=rf"by Python 2\.7 of the client, and this worker has Python {PYTHON}"):
            call(os._exit, 3, python="2.7")
        with pytest.raises(AnotherPython, match=r"by Python 2\.7 of the worker, and this client has"):
            unpickle(joined([b"x"], "2.7"), "the value")

    def test_a_value_that_cannot_be_sent(self, call):
        with pytest.raises(CannotCall, match=r"what .*<lambda> returned, a generator, cannot be pickled"):
            call(lambda: (number for number in range(3)))

    def test_a_module_that_is_not_there(self, call, tmp_path, monkeypatch):
        (tmp_path / "gone_app.py").write_text("def f(): pass")
        monkeypatch.syspath_prepend(str(tmp_path))
        import gone_app

        def load():
            (tmp_path / "gone_app.py").unlink()
            import sys

            del sys.modules["gone_app"]

        data = pickled("f", gone_app.f)
        load()
        Path(FUNCTION).write_bytes(joined([data]))
        Path(ARGUMENTS).write_bytes(joined([pickled("a", ((), {}))]))
        with pytest.raises(
            CannotCall, match="the function cannot be unpickled: there is no module 'gone_app' in the task's"
        ):
            call_pickled(0, tmp_path)

    @pytest.mark.parametrize("data", [b"", b"x", b"{}\n", b'{"python": "3.11", "sizes": []}\n', b"[1]\nx"])
    def test_what_is_no_such_file(self, data):
        with pytest.raises(DtfError, match="it came as no file of pickles"):
            part(data, 0, "it", written_by="a", read_by="b")


def task(status="completed", returned=None, **fields):
    return {"task_id": "t", "status": status, "error": None, "results": {"returned": returned}, **fields}


class NeedsTwo(Exception):
    """As many an exception, it can be pickled and not be made again."""

    def __init__(self, one, two):
        super().__init__(one)


def raised(error):
    try:
        raise error
    except type(error) as caught:
        return caught


class TestAtAClient:
    def value(self, task, *, is_pickled=True, **files):
        return value_of(task, lambda name: files[name.replace(".", "_")], is_pickled=is_pickled)

    def test_values(self):
        data = joined([cloudpickle.dumps({1, 2})])
        assert self.value(task(returned={"value": None})) is None
        assert self.value(task(returned={"artifact": "value.json"}), value_json=b"[1]") == [1]
        assert self.value(task(returned={"artifact": "value.pickle"}), value_pickle=data) == {1, 2}

    def test_a_pickle_is_read_of_calls_alone_that_were_one(self):
        with pytest.raises(TaskFailed, match="a pickle, which is read of calls alone that this client sent as one"):
            self.value(task(returned={"artifact": "value.pickle"}), is_pickled=False)
        failed = task("failed", {"artifact": "exception.pickle"}, error="ValueError: x; exit code 1")
        with pytest.raises(TaskFailed, match="task t ended as failed: ValueError: x; exit code 1"):
            self.value(failed, is_pickled=False)

    def test_the_exception_itself_is_raised(self, tmp_path):
        """With its traceback on the worker as the cause."""
        told = keep_exception(raised(KeyError("no such key")), tmp_path)
        assert told == {"artifact": "exception.pickle", "python": PYTHON}
        data = (tmp_path / "exception.pickle").read_bytes()
        with pytest.raises(KeyError, match="no such key") as caught:
            self.value(task("failed", told, error="KeyError"), exception_pickle=data)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert "in raised" in str(caught.value.__cause__)

    def test_an_exception_that_does_not_come_back_is_told(self, tmp_path):
        assert keep_exception(raised(NeedsTwo(1, 2)), tmp_path) == {}
        data = joined([cloudpickle.dumps((KeyError(), ""))], "2.7")
        failed = task("failed", {"artifact": "exception.pickle"}, error="KeyError: x")
        with pytest.raises(
            TaskFailed, match=r"failed: KeyError: x \(the exception of task t was pickled by Python 2\.7"
        ):
            self.value(failed, exception_pickle=data)

    @pytest.mark.parametrize(
        ("ended", "error", "told"),
        [
            (task("cancelled", error="by a client"), CancelledError, "task t: by a client"),
            (task("skipped", error="x failed"), TaskFailed, "task t ended as skipped: x failed"),
            (task(), TaskFailed, "it did not say what it returned: it is no call, or its process ended itself"),
            ({"task_id": "t", "status": "completed"}, TaskFailed, "its result is kept no more"),
        ],
    )
    def test_there_is_no_value(self, ended, error, told):
        with pytest.raises(error, match=told):
            self.value(ended)
