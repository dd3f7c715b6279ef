"""`GitHubHandler`: an incident as an issue, opened once, commented on, and closed when it is over.

The issue bears the incident's id and each comment its step's key in a comment of HTML: what is there is not written again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dtf_lightning.farm.alerts.notice import Notice
from dtf_lightning.farm.alerts.posting import as_bytes, post
from dtf_lightning.farm.alerts.secrets import read_secret

API = "https://api.github.com"
LABEL = "dtf-farm"
"""Of all its issues, by which they are found again."""
PAGE = 100


@dataclass(frozen=True, kw_only=True)
class GitHubHandler:
    """Writes issues of one repository."""

    repository: str
    """`OWNER/NAME`."""
    secret_file: Path
    """Holds a token that may write its issues."""
    url: str = API

    def send(self, notice: Notice, timeout: float) -> None:
        """See `Handler`."""
        number = self._find(notice, timeout)
        mark = _mark(notice.key)
        if number is None:
            body = f"{_text(notice)}\n\n{_mark(notice.incident)}\n{mark}"
            made = self._ask("POST", "issues", timeout, {"title": notice.title, "body": body, "labels": [LABEL]})
            number = made["number"]
        elif not self._is_said(number, mark, timeout):
            self._ask("POST", f"issues/{number}/comments", timeout, {"body": f"{_text(notice)}\n\n{mark}"})
        if notice.step == "resolved":
            self._ask("PATCH", f"issues/{number}", timeout, {"state": "closed"})

    def _find(self, notice: Notice, timeout: float) -> int | None:
        """The incident's issue, among the newest."""
        mark = _mark(notice.incident)
        found = self._ask("GET", f"issues?labels={LABEL}&state=all&per_page={PAGE}", timeout)
        return next((int(one["number"]) for one in found if mark in (one.get("body") or "")), None)

    def _is_said(self, number: int, mark: str, timeout: float) -> bool:
        issue = self._ask("GET", f"issues/{number}", timeout)
        said = self._ask("GET", f"issues/{number}/comments?per_page={PAGE}", timeout)
        return any(mark in (one.get("body") or "") for one in (issue, *said))

    def _ask(self, method: str, what: str, timeout: float, body: Any = None) -> Any:
        headers = {
            "Authorization": f"Bearer {read_secret(self.secret_file).decode()}",
            "Accept": "application/vnd.github+json",
            "User-Agent": "dtf-lightning",
        }
        url = f"{(self.url or API).rstrip('/')}/repos/{self.repository}/{what}"
        _, told = post(url, b"" if body is None else as_bytes(body), headers, timeout, method=method)
        return json.loads(told or b"null")


def _mark(key: str) -> str:
    return f"<!-- dtf-farm {quote(key, safe='/')} -->"


def _text(notice: Notice) -> str:
    """As a block of code: names of workers and tests are no Markdown, and mention nobody."""
    fence = "`" * (2 + max([1, *(len(run) for run in _runs(notice.text))]))
    return f"{fence}\n{notice.text}\n{fence}"


def _runs(text: str) -> list[str]:
    """The runs of backticks in a text."""
    return "".join(sign if sign == "`" else " " for sign in text).split()
