"""What a worker runs for a shard of `pytest --farm`: `python -P runner.py SHARD.json`, in the shard's folder.

Rules that this file guards:
- It imports nothing but pytest and the standard library: the tests' own process holds what they import, and nothing else. It is run
  by its path, so that a copy of this package among the tests is imported as the tests want it.
- What it says stands in its standard output, in pieces that are written at once; what pytest shows there goes nowhere.
- The tests that were named run, in the order in which they were named, or none does.

Lines, by their `kind`: `hello` (who runs the tests), `mismatch` (some were not found; the end), `start`, `report`, `warning`,
`finish` (of the test `at`), `timeout` (of the test `at`; the process ends), `exit`, `interrupt`, `internal` (what ended the run), `done`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

MARK = b"\x1edtf:"
TUPLE = "()"
PIECE = 2000
"""Bytes; a pipe takes up to 4096 at once."""
TIMED_OUT = 70
"""Exit code of a process that ended because a test took too long."""
SHOWN = 5
"""Tests that are named where many were not found."""

QUIET: dict[str, Any] = {
    "farm": False, "lf": False, "failedfirst": False, "newfirst": False, "stepwise": False, "stepwise_skip": False,
    "cacheclear": False, "maxfail": 0, "durations": None, "collectonly": False, "pastebin": None,
    "log_file": None, "basetemp": None, "pyargs": False, "usepdb": False,
    "numprocesses": None, "maxprocesses": None, "dist": "no", "distload": False, "tx": [], "looponfail": False,
}  # fmt: skip
"""Options that are the affair of the pytest that has sent the shard -> their values here. The latter ones are pytest-xdist's."""


def packed(value: Any) -> Any:
    """Return what JSON can hold of a value; what it cannot is told in words."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return {TUPLE: [packed(one) for one in value]}
    if isinstance(value, list):
        return [packed(one) for one in value]
    if isinstance(value, dict):
        return {str(key): packed(one) for key, one in value.items()}
    return os.fspath(value) if isinstance(value, Path) else repr(value)


class Channel:
    """Says lines. Thread-safe."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.Lock()

    def say(self, kind: str, **fields: Any) -> None:
        """Write one line, whole, before this returns."""
        text = json.dumps({"kind": kind, **packed(fields)}).encode()
        with self._lock:
            for start in range(0, len(text), PIECE):
                more = b"+" if start + PIECE < len(text) else b"."
                self._write(MARK + more + text[start : start + PIECE] + b"\n")

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._file, data) :]


class ShardPlugin:
    """Runs a shard's tests and says what happens. `shard`: what `ShardFile` of the sender holds."""

    def __init__(self, shard: dict[str, Any], channel: Channel) -> None:
        self._shard, self._channel = shard, channel
        self._at = {nodeid: number for number, nodeid in enumerate(shard["nodeids"])}
        self._running: int | None = None
        self._timer: threading.Timer | None = None

    # --- before the tests --------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> Generator[None, Any, Any]:
        for name, value in QUIET.items():
            if hasattr(config.option, name):
                setattr(config.option, name, value)
        if config.option.xmlpath:  # fixtures look whether there is such a file; the one that counts is the sender's
            config.option.xmlpath = str(Path(self._shard["moved"], "junit.xml"))
        config.args = [str(Path(self._shard["top"], file)) for file in self._shard["files"]]
        self._channel.say("hello", **_about(config), top=self._shard["top"])
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> Generator[None, None, None]:
        yield
        found = {item.nodeid: item for item in items}
        missing = [nodeid for nodeid in self._at if nodeid not in found]
        if missing:
            self._channel.say(
                "mismatch", missing=missing[:SHOWN], num_missing=len(missing), num_found=len(items), errors=self._errors
            )
            items.clear()
            session.shouldstop = "the tests of the shard were not found"
        else:
            items[:] = [found[nodeid] for nodeid in self._at]

    _errors = ""

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._errors += f"{report.longreprtext}\n"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        # Errors in collection were told where the run began; here only what is missing counts.
        session.testsfailed = 0

    # --- the tests ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        at = self._at[item.nodeid]
        began = time.perf_counter()
        self._running = at
        self._channel.say("start", at=at)
        self._set_timer(at)
        try:
            result = yield
        finally:
            if self._timer is not None:
                self._timer.cancel()
        session = item.session
        self._channel.say(
            "finish", at=at, seconds=time.perf_counter() - began, stop=session.shouldstop, fail=session.shouldfail
        )
        self._running = None
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._channel.say("report", at=self._at[report.nodeid], data=data)

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        if when == "runtest" and self._running is not None:
            self._channel.say(
                "warning", at=self._running, nodeid=nodeid, text=str(warning_message.message),
                category=[warning_message.category.__module__, warning_message.category.__qualname__],
                filename=warning_message.filename, lineno=warning_message.lineno, line=warning_message.line,
            )  # fmt: skip

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config

    # --- what ends it ------------------------------------------------------------------------------------------------

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, pytest.exit.Exception):
            self._channel.say("exit", at=self._running, text=excinfo.value.msg, code=excinfo.value.returncode)
        else:
            self._channel.say("interrupt", at=self._running, text=str(excinfo.value))

    def pytest_internalerror(self, excrepr: object) -> None:
        self._channel.say("internal", at=self._running, text=str(excrepr))

    def _set_timer(self, at: int) -> None:
        seconds = self._shard["timeouts"][at]
        if seconds is not None:
            self._timer = threading.Timer(seconds, self._time_out, (at, seconds))
            self._timer.daemon = True
            self._timer.start()

    def _time_out(self, at: int, seconds: float) -> None:
        if self._running == at:
            self._channel.say("timeout", at=at, seconds=seconds, stacks=_stacks())
            os._exit(TIMED_OUT)


def _about(config: pytest.Config) -> dict[str, Any]:
    plugins = {dist.project_name: dist.version for _, dist in config.pluginmanager.list_plugin_distinfo()}
    return {
        "python": list(sys.version_info[:3]),
        "pytest": pytest.__version__,
        "plugins": plugins,
        "executable": sys.executable,
    }


def _stacks() -> str:
    """Return where all threads are, but for this one; of pytest's own calls, which lead to the test, nothing."""
    here, names = threading.get_ident(), {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_list(_behind_pytest(frame)))}"
        for ident, frame in sys._current_frames().items()
        if ident != here
    ]
    return "\n".join(parts)


def _behind_pytest(frame: Any) -> list[traceback.FrameSummary]:
    stack = list(traceback.extract_stack(frame))
    ours = [number for number, place in enumerate(stack) if {"_pytest", "pluggy"} & set(Path(place.filename).parts)]
    return stack[ours[-1] + 1 :] if ours and ours[-1] + 1 < len(stack) else stack


def main(path: str) -> int:
    """Run the shard that a file describes, and return pytest's exit code."""
    shard = json.loads(Path(path).read_text())
    sys.stdout.flush()
    channel = Channel(os.dup(1))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)
    code = pytest.main(["-p", shard["plugin"], *shard["arguments"]], plugins=[ShardPlugin(shard, channel)])
    channel.say("done")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
