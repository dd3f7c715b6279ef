"""Somebody who is told: an HTTP server that keeps what it was sent, and answers as the test says."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.farm.server import DEADLINE


@dataclass(frozen=True)
class Said:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Listener:
    """Listens on the loopback. `answers` are given in their order, then 200 and `{}`."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.answers: list[tuple[int, Any]] = []
        self.hangs = threading.Event()
        """While it is set nothing is answered: `release` ends that."""
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.said.append(Said(self.command, self.path, dict(self.headers), body))
                if outer.hangs.is_set():
                    outer.release.wait(DEADLINE)
                status, told = outer.answer(outer.said[-1])
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = _any  # noqa: N815  http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def answer(self, said: Said) -> tuple[int, Any]:
        return self.answers.pop(0) if self.answers else (200, {})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(DEADLINE)


class Issues(Listener):
    """As much of GitHub's issues as is used, by its documentation (REST API, version 2022-11-28)."""

    def __init__(self) -> None:
        super().__init__()
        self.issues: list[dict[str, Any]] = []
        self.comments: dict[int, list[dict[str, Any]]] = {}

    def answer(self, said: Said) -> tuple[int, Any]:
        if self.answers:
            return self.answers.pop(0)
        if said.headers.get("Authorization") != "Bearer t0ken":
            return 401, {"message": "Bad credentials"}
        parts = said.path.partition("?")[0].split("/")[1:]
        assert parts[:3] == ["repos", "lab", "farm"], parts
        number = int(parts[4]) if len(parts) > 4 else 0
        if said.method == "GET" and not number:
            return 200, list(reversed(self.issues))
        if said.method == "GET":
            return 200, self.comments[number] if len(parts) > 5 else self.issues[number - 1]
        if said.method == "POST" and not number:
            issue = {"number": len(self.issues) + 1, "state": "open", **said.json}
            self.issues.append(issue)
            self.comments[issue["number"]] = []
            return 201, issue
        if said.method == "POST":
            self.comments[number].append(said.json)
            return 201, {}
        self.issues[number - 1] |= said.json
        return 200, self.issues[number - 1]
