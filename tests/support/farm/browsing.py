"""A coordinator's page as a program asks for it: with a browser's headers, or a browser's cookie."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

DEADLINE = 60.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """By their names in small letters."""
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Browsing:
    """Asks one address after the other. `cookie`: what it sends along, as `NAME=VALUE`."""

    def __init__(self, url: str, token: str = "", cookie: str = "") -> None:
        self.url = url
        self.token = token
        self.cookie = cookie

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        told = {"Accept": "text/html"}
        told |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        told |= {"Cookie": self.cookie} if self.cookie else {}
        return told | headers

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Underscores in names of headers stand for dashes."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=DEADLINE)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, self._headers(named))
            answer = connection.getresponse()
            told = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, told, answer.read().decode())
        finally:
            connection.close()

    def get(self, path: str, **query: str) -> Answer:
        return self.ask("GET", f"{path}?{urlencode(query)}" if query else path)

    def data(self, path: str, **query: str) -> Any:
        """What a screen shows."""
        answer = self.get(path, **query, format="json")
        assert answer.status == 200, answer
        return answer.json()

    def act(self, action: str, name: str) -> Answer:
        """As the page's script does."""
        path = f"/do/{action}?{urlencode({'name': name})}"
        return self.ask("POST", path, b"", Origin=self.url, X_DTF_Farm="page", HX_Request="true")


class Stream:
    """The events of a view."""

    def __init__(self, browsing: Browsing, path: str, seen: str = "", last: str = "") -> None:
        self._connection = http.client.HTTPConnection(urlsplit(browsing.url).netloc, timeout=DEADLINE)
        headers = browsing._headers({"Accept": "text/event-stream"}) | ({"Last-Event-ID": last} if last else {})
        mark = "&" if "?" in path else "?"
        self._connection.request("GET", f"{path}{mark}seen={seen}" if seen else path, headers=headers)
        self._answer = self._connection.getresponse()
        self.status, self.content_type = self._answer.status, self._answer.getheader("content-type")

    def next(self) -> dict[str, str] | None:
        """The next event with its `id`, `event` and `data`; `None` where the stream has ended."""
        told: dict[str, str] = {}
        while line := self._answer.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                told[name.rstrip(":")] = told[name] + "\n" + value if name in told else value
            elif "event" in told:
                return told
            else:
                told = {}
        return None

    def view(self) -> dict[str, str]:
        """The next event that shows something."""
        while (event := self.next()) is not None:
            if event["event"] == "view":
                return event
        raise AssertionError("the stream has ended")

    def until(self, text: str) -> dict[str, str]:
        """The next event that shows a text."""
        while text not in (event := self.view())["data"]:
            pass
        return event

    def close(self) -> None:
        self._answer.close()
        self._connection.close()
