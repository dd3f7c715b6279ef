"""`Place`: on which forge a job runs, for which commit and change, by what the forge's runner has set. Pure, but for the variables.

| | GitHub | GitLab | Buildkite |
|---|---|---|---|
| is known by | `GITHUB_ACTIONS` | `GITLAB_CI` | `BUILDKITE` |
| repository | `GITHUB_REPOSITORY` | `CI_PROJECT_ID` | |
| commit | the change's head, else `GITHUB_SHA` | `CI_COMMIT_SHA` | `BUILDKITE_COMMIT` |
| change | the event's number | `CI_MERGE_REQUEST_IID` | `BUILDKITE_PULL_REQUEST` |
| token | `GITHUB_TOKEN` | `DTF_GITLAB_TOKEN` | |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError

FORGES = ("github", "gitlab", "buildkite", "none")
TOKENS = {"github": "GITHUB_TOKEN", "gitlab": "DTF_GITLAB_TOKEN"}
VARIABLES = ("GITHUB_", "CI", "GITLAB_CI", "BUILDKITE", "DTF_GITLAB_TOKEN")
"""How those begin that are read."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a job runs. "" and `None` for what is not known."""

    forge: str = "none"
    api: str = ""
    repository: str = ""
    commit: str = ""
    change: int | None = None
    link: str = ""
    """To the job's page."""
    token: str = ""
    summary: Path | None = None
    """File that GitHub shows as the step's summary."""

    @classmethod
    def of(cls, variables: Mapping[str, str], forge: str = "") -> Place:
        """Return it. `forge`: "" for what the variables say. Raises `SettingsError` for one that does not exist."""
        if forge and forge not in FORGES:
            raise SettingsError(f"--forge {forge}: expected one of {', '.join(FORGES)}")
        found = forge or next(
            (
                name
                for name, mark in (("github", "GITHUB_ACTIONS"), ("gitlab", "GITLAB_CI"), ("buildkite", "BUILDKITE"))
                if variables.get(mark) == "true"
            ),
            "none",
        )
        return {"github": _github, "gitlab": _gitlab, "buildkite": _buildkite}.get(found, lambda _: cls())(variables)

    def __repr__(self) -> str:
        """Without the token."""
        return f"Place({self.forge}, {self.repository}, {self.commit})"


def _github(variables: Mapping[str, str]) -> Place:
    event = _event(variables.get("GITHUB_EVENT_PATH", ""))
    change = event.get("pull_request") or {}
    server, repository = variables.get("GITHUB_SERVER_URL", ""), variables.get("GITHUB_REPOSITORY", "")
    run, summary = variables.get("GITHUB_RUN_ID", ""), variables.get("GITHUB_STEP_SUMMARY", "")
    # GITHUB_SHA of a pull request is a merge that nobody made: statuses belong to the head.
    head = (change.get("head") or {}).get("sha")
    return Place(
        forge="github",
        api=variables.get("GITHUB_API_URL", ""),
        repository=repository,
        commit=str(head or variables.get("GITHUB_SHA", "")),
        change=_number(change.get("number")),
        link=f"{server}/{repository}/actions/runs/{run}" if server and run else "",
        token=variables.get(TOKENS["github"], ""),
        summary=Path(summary) if summary else None,
    )


def _gitlab(variables: Mapping[str, str]) -> Place:
    return Place(
        forge="gitlab",
        api=variables.get("CI_API_V4_URL", ""),
        repository=variables.get("CI_PROJECT_ID", ""),
        commit=variables.get("CI_COMMIT_SHA", ""),
        change=_number(variables.get("CI_MERGE_REQUEST_IID")),
        link=variables.get("CI_JOB_URL", ""),
        token=variables.get(TOKENS["gitlab"], ""),
    )


def _buildkite(variables: Mapping[str, str]) -> Place:
    return Place(
        forge="buildkite",
        commit=variables.get("BUILDKITE_COMMIT", ""),
        change=_number(variables.get("BUILDKITE_PULL_REQUEST")),
        link=variables.get("BUILDKITE_BUILD_URL", ""),
    )


def _event(path: str) -> dict[str, Any]:
    """What has started the job; {} where that cannot be read."""
    try:
        body = json.loads(Path(path).read_bytes()) if path else {}
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _number(told: object) -> int | None:
    text = str(told)
    return int(text) if text.isascii() and text.isdecimal() and int(text) > 0 else None
