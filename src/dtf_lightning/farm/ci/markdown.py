"""A report as Markdown, for a job's summary or a comment. Pure.

Rules that this file guards:
- Whatever tests and workers said stands there as text: nothing in it is markup, mentions anybody or refers to anything.
- It is never larger than it may be; what was left out is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dtf_lightning.farm.ci.report import Case, Group, Outcome, Report, State

SUMMARY_LIMIT = 1_000_000
"""Bytes; GitHub's job summary, GitLab's note and Buildkite's annotation take a little more."""
COMMENT_LIMIT = 60_000
"""Likewise of a comment on GitHub."""
MAX_ROWS = 200
_MESSAGE, _TEXT = 300, 4000
"""Characters of a cell, and the last ones of a failure's text."""
_PLAIN = frozenset(" .,;%/=()'\"?")
_RESERVE = 200
"""Bytes kept for the line that counts what was left out."""
_TITLES = {State.PASSED: "passed", State.FAILED: "failed", State.UNSURE: "could not tell"}


def marker(name: str) -> str:
    """Return the line by which a job finds its own comment again."""
    return f"<!-- dtf farm: {''.join(sign if sign.isalnum() else '-' for sign in name)} -->"


def markdown(report: Report, limit: int = SUMMARY_LIMIT, *, link: str = "") -> str:
    """Return a report of at most `limit` bytes. `link`: to the job's page."""
    head = f"{marker(report.name)}\n### {inline(report.name)}: {_TITLES[report.state]}\n\n{inline(report.headline)}.\n"
    if link.startswith(("https://", "http://")) and not set(link) & set(" ()<>\n"):
        head += f"\n[The job]({link})\n"
    text, room, left = head, limit - len(head.encode()) - _RESERVE, 0
    for block in _blocks(report):
        size = len(block.encode())
        if size <= room:
            text, room = text + block, room - size
        else:
            left += 1
    if left:
        text += (
            f"\n{left} more part{'' if left == 1 else 's'} of this report had no room here; the job's files have all.\n"
        )
    return text


def inline(text: str) -> str:
    """Return a text that reads as it is within a line, whatever is in it, and mentions nobody."""
    return "".join(_sign(sign) for sign in " ".join(text.split()))


def code(text: str) -> str:
    """Return a text as code within a line or a table's cell."""
    return f"<code>{inline(text)}</code>" if text.strip() else ""


def fenced(text: str) -> str:
    """Return a text as a block of code, behind a fence that is longer than any in it."""
    longest = max((len(run) for run in _runs_of_ticks(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _blocks(report: Report) -> Iterator[str]:
    """The parts of a report, what matters most first; each stands by itself."""
    for problem in report.problems:
        yield f"\n- {code(_short(problem, _MESSAGE))}\n"
    if report.judged:
        yield "\n" + "\n".join(f"- {inline(one.sentence)}" for one in report.judged[:MAX_ROWS]) + "\n"
        rows = [
            (code(one.metric), inline(one.state), code(one.base), code(one.candidate), str(one.num_pairs), code(one.verdict))
            for one in report.judged[:MAX_ROWS]
        ]  # fmt: skip
        yield _table(("metric", "verdict", "base", "candidate", "pairs", "id"), rows)
    bad = list(report.bad())
    yield from _failures(bad)
    if len(report.groups) > 1:
        counted = [(inline(group.title), *_counts(group)) for group in report.groups]
        yield _table(("results", "passed", "failed", "skipped"), counted)
    for _, case in bad[:MAX_ROWS]:
        if case.text:
            shown = case.text if len(case.text) <= _TEXT else "...\n" + case.text[-_TEXT:]
            yield f"\n<details><summary>{code(_short(case.title, _MESSAGE))}</summary>\n\n{fenced(shown)}\n\n</details>\n"


def _failures(bad: Sequence[tuple[Group, Case]]) -> Iterator[str]:
    """A table in pieces, so that of a long one the beginning has room."""
    if not bad:
        return
    workers = any(case.worker for _, case in bad)
    rows = []
    for group, case in bad[:MAX_ROWS]:
        place = f"{case.file}:{case.line}" if case.file and case.line else case.file
        row = [code(_short(case.title, _MESSAGE)), code(place), code(_short(case.message, _MESSAGE))]
        rows.append((*row, *([code(case.worker)] if workers else []), inline(group.kind)))
    head = ("failed", "where", "why", *(["worker"] if workers else []), "what")
    step = 25
    for start in range(0, len(rows), step):
        yield _table(head, rows[start : start + step])
    if len(bad) > MAX_ROWS:
        yield f"\n{len(bad) - MAX_ROWS} more failed.\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _counts(group: Group) -> tuple[str, str, str]:
    return (
        str(group.count(Outcome.PASSED)),
        str(group.count(Outcome.FAILED, Outcome.ERROR)),
        str(group.count(Outcome.SKIPPED)),
    )


def _sign(sign: str) -> str:
    if sign.isalnum() or sign in _PLAIN:
        return sign
    if sign == "@":  # it would mention somebody even when written as an entity
        return "&#64;&#8203;"
    return f"&#{ord(sign)};" if sign.isprintable() else "&#65533;"


def _short(text: str, length: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= length else flat[: length - 4] + " ..."


def _runs_of_ticks(text: str) -> list[str]:
    return "".join(sign if sign == "`" else " " for sign in text).split()
