"""JUnit's XML, as pytest, Maven, Go and others write it: read into cases, and written from them. Pure.

Of where a test failed JUnit's own words say nothing: it is read from attributes that some write, else from the last `path:line:` of
the failure's text, as pytest's has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree as ET

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.report import Case, Group, Outcome

_PLACE = re.compile(r"^([^\s:][^:\n]*\.\w+):(\d+): ", re.MULTILINE)
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold."""
_SUITES = ("testsuite", "testsuites")


def read_junit(data: bytes, name: str) -> Group:
    """Return the tests of a file. `name`: of it. Raises `SettingsError` for one that is no JUnit XML, with the place."""
    if b"<!ENTITY" in data:
        raise SettingsError(f"{name} is no JUnit XML: it declares entities, which no writer of JUnit does")
    try:
        root = ET.fromstring(data)
    except ET.ParseError as error:
        line, column = error.position
        said = str(error).partition(":")[0]
        raise SettingsError(
            f"{name}, line {line}, column {column + 1}: {said}; expected JUnit XML. Was its writer ended in its middle?"
        ) from error
    if root.tag not in _SUITES:
        raise SettingsError(f"{name} is no JUnit XML: its root is <{root.tag}>, expected <testsuites> or <testsuite>")
    return Group(title=root.get("name") or name, kind="test", cases=tuple(_cases(root, name)))


def write_junit(groups: Iterable[Group]) -> bytes:
    """Return groups as one file; a group is a suite."""
    root = ET.Element("testsuites")
    for group in groups:
        counts = {
            "tests": len(group.cases),
            "failures": group.count(Outcome.FAILED),
            "errors": group.count(Outcome.ERROR),
            "skipped": group.count(Outcome.SKIPPED),
        }
        told = {"name": _clean(group.title), **{key: str(number) for key, number in counts.items()}}
        suite = ET.SubElement(root, "testsuite", {**told, "time": f"{sum(case.seconds for case in group.cases):.3f}"})
        for case in group.cases:
            _write(suite, case)
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f"<?xml version='1.0' encoding='utf-8'?>\n{text}\n".encode()


def _cases(root: ET.Element, name: str) -> Iterator[Case]:
    for one in root.iter("testcase"):
        found, outcome = None, Outcome.PASSED
        for tag, meaning in (("failure", Outcome.FAILED), ("error", Outcome.ERROR), ("skipped", Outcome.SKIPPED)):
            if found is None and (found := one.find(tag)) is not None:
                outcome = meaning
        text = "" if found is None else (found.text or "").strip()
        message = "" if found is None else (found.get("message") or text.partition("\n")[0])
        file, line = _place(one, text) if outcome.bad else ("", 0)
        yield Case(
            name=one.get("name") or "(a test without a name)",
            classname=one.get("classname") or "",
            outcome=outcome,
            seconds=_seconds(one.get("time"), name),
            message=message,
            text=text,
            file=file,
            line=line,
        )


def _place(one: ET.Element, text: str) -> tuple[str, int]:
    """Where it failed: what the text says last, and is in the repository; else where the test stands."""
    found = [match for match in _PLACE.findall(text) if not match[0].startswith(("/", ".."))]
    if found:
        return found[-1][0], int(found[-1][1])
    file, line = one.get("file") or "", one.get("line") or ""
    return file, int(line) if line.isascii() and line.isdecimal() else 0


def _seconds(told: str | None, name: str) -> float:
    try:
        seconds = float((told or "0").replace(",", ""))  # some write thousands so
    except ValueError as error:
        raise SettingsError(f"{name}: a test's time is {told!r}, expected seconds") from error
    return seconds if 0 <= seconds < float("inf") else 0.0


def _write(suite: ET.Element, case: Case) -> None:
    told = {"name": _clean(case.name), "classname": _clean(case.classname), "time": f"{case.seconds:.3f}"}
    if case.file:
        told |= {"file": _clean(case.file), "line": str(case.line)}
    one = ET.SubElement(suite, "testcase", told)
    tags = {Outcome.FAILED: "failure", Outcome.ERROR: "error", Outcome.SKIPPED: "skipped"}
    if case.outcome in tags:
        ET.SubElement(one, tags[case.outcome], {"message": _clean(case.message)}).text = _clean(case.text)


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
