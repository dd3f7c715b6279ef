"""A commit's status, a comment on a change, and a check run: on GitHub and GitLab, by their APIs.

Rule: a job has one comment on a change, which is written anew each time; also where an answer was lost meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import quote

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.annotations import CHECK_BATCH, check_annotations
from dtf_lightning.farm.ci.forges.api import ForgeApi, ForgeRefused
from dtf_lightning.farm.ci.forges.place import TOKENS, Place
from dtf_lightning.farm.ci.markdown import COMMENT_LIMIT, SUMMARY_LIMIT, markdown, marker
from dtf_lightning.farm.ci.report import Report, State

MAX_PAGES = 30
_PAGE = 100
_DESCRIPTION = 140
_NOT_OURS = (403, 404)


class Forge(Protocol):
    """What a forge can be told."""

    def status(self, report: Report) -> None:
        """Set the commit's status under the job's name. Raises `ForgeRefused`."""

    def comment(self, report: Report) -> None:
        """Write the job's comment on the change. Raises `ForgeRefused`, and `SettingsError` where there is no change."""

    def check_run(self, report: Report) -> None:
        """Make a check run with annotations. Raises `ForgeRefused`, and `SettingsError` for a forge that has none."""


def forge_of(place: Place, *, pause: Callable[[float], object] | None = None) -> Forge:
    """Return the forge of a place. Raises `SettingsError` where it cannot be told anything."""
    if place.forge not in TOKENS:
        raise SettingsError(f"a job on {place.forge} has no status, comment or check run: leave these options out")
    lacking = [
        name for name, value in (("a token", place.token), ("a repository", place.repository), ("a commit", place.commit)) if not value
    ]  # fmt: skip
    if lacking:
        raise SettingsError(
            f"{place.forge} can be told nothing: there is no {lacking[0].partition(' ')[2]} here; expected ${TOKENS[place.forge]} and what "
            "the forge's runner sets"
        )
    return _GitHub(place, pause) if place.forge == "github" else _GitLab(place, pause)


def described(report: Report) -> str:
    """Return the headline as a status holds it."""
    text = " ".join(report.headline.split())
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 4] + " ..."


class _GitHub:
    def __init__(self, place: Place, pause: Callable[[float], object] | None) -> None:
        headers = {
            "Authorization": f"Bearer {place.token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        self._place = place
        self._api = ForgeApi(place.api, headers, pause=pause)
        self._root = f"/repos/{quote(place.repository)}"

    def status(self, report: Report) -> None:
        states = {State.PASSED: "success", State.FAILED: "failure", State.UNSURE: "error"}
        body = {"state": states[report.state], "context": report.name, "description": described(report)}
        if self._place.link:
            body["target_url"] = self._place.link
        self._api.ask("POST", f"{self._root}/statuses/{quote(self._place.commit)}", body)

    def comment(self, report: Report) -> None:
        change = _change(self._place)
        body = {"body": markdown(report, COMMENT_LIMIT, link=self._place.link)}
        _write_once(
            self._api,
            report,
            body,
            f"{self._root}/issues/{change}/comments",
            f"{self._root}/issues/comments/{{}}",
            "PATCH",
        )

    def check_run(self, report: Report) -> None:
        conclusions = {State.PASSED: "success", State.FAILED: "failure", State.UNSURE: "neutral"}
        output: dict[str, Any] = {
            "title": described(report),
            "summary": markdown(report, COMMENT_LIMIT, link=self._place.link),
        }
        found = check_annotations(report)
        batches = [found[at : at + CHECK_BATCH] for at in range(0, len(found), CHECK_BATCH)] or [[]]
        body: dict[str, Any] = {
            "name": report.name,
            "head_sha": self._place.commit,
            "status": "completed",
            "conclusion": conclusions[report.state],
            "output": {**output, "annotations": batches[0]},
        }
        if self._place.link:
            body["details_url"] = self._place.link
        made = self._api.ask("POST", f"{self._root}/check-runs", body)
        for batch in batches[1:]:  # GitHub adds them to those that are there
            change = {"output": {**output, "annotations": batch}}
            self._api.ask("PATCH", f"{self._root}/check-runs/{int(made['id'])}", change)


class _GitLab:
    def __init__(self, place: Place, pause: Callable[[float], object] | None) -> None:
        self._place = place
        self._api = ForgeApi(place.api, {"PRIVATE-TOKEN": place.token}, pause=pause)
        self._root = f"/projects/{quote(place.repository, safe='')}"

    def status(self, report: Report) -> None:
        state = "success" if report.state is State.PASSED else "failed"
        body = {"state": state, "name": report.name, "description": described(report)}
        if self._place.link:
            body["target_url"] = self._place.link
        try:
            self._api.ask("POST", f"{self._root}/statuses/{quote(self._place.commit)}", body)
        except ForgeRefused as refusal:
            # The same status again is refused: "Cannot transition status via :run from :success".
            if refusal.status != 400 or "transition" not in str(refusal):
                raise

    def comment(self, report: Report) -> None:
        notes = f"{self._root}/merge_requests/{_change(self._place)}/notes"
        body = {"body": markdown(report, SUMMARY_LIMIT, link=self._place.link)}
        _write_once(self._api, report, body, notes, notes + "/{}", "PUT")

    def check_run(self, report: Report) -> None:  # noqa: ARG002
        raise SettingsError(
            "GitLab has no check runs: its report of code quality annotates lines; leave out --check-run"
        )


def _change(place: Place) -> int:
    if place.change is None:
        raise SettingsError("this job is of no pull or merge request, so that there is nowhere to comment")
    return place.change


def _write_once(api: ForgeApi, report: Report, body: dict[str, Any], all_of_them: str, one: str, change: str) -> None:
    """Change the newest comment that is this job's, or write one. Who may not change it (another's) writes one."""
    mark = marker(report.name)

    def write() -> None:
        ours = [comment["id"] for comment in _pages(api, all_of_them) if str(comment.get("body", "")).startswith(mark)]
        if ours:
            try:
                api.ask_once(change, one.format(int(max(ours))), body)
            except ForgeRefused as refusal:
                if refusal.status not in _NOT_OURS:
                    raise
            else:
                return
        api.ask_once("POST", all_of_them, body)

    api.insist(write)  # as a whole: where the answer to a new comment was lost, it is found the next time


def _pages(api: ForgeApi, path: str) -> Iterator[dict[str, Any]]:
    for page in range(1, MAX_PAGES + 1):
        found = api.ask("GET", f"{path}?per_page={_PAGE}&page={page}")
        yield from found
        if len(found) < _PAGE:
            return
