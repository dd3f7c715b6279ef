"""A forge's API on this machine: it answers as GitHub and GitLab document, keeps what it was told, and fails where it is to."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

HERE = "http://127.0.0.1"


class FakeForge:
    """`asked`: (method, path without query, body). `faults`: what the next requests get instead: a status, or "lost"."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: set[str] = set()
        self.faults: list[int | str] = []
        self.refused: dict[str, tuple[int, str]] = {}
        """Method and path -> what it always gets."""
        self.comments: list[dict[str, Any]] = []
        self.statuses: list[dict[str, Any]] = []
        self.checks: list[dict[str, Any]] = []
        forge = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                path, _, query = self.path.partition("?")
                forge.tokens |= {
                    value for name in ("Authorization", "PRIVATE-TOKEN") if (value := self.headers.get(name))
                }
                forge.asked.append((self.command, path, body))
                fault = forge.faults.pop(0) if forge.faults else 200
                if (told := forge.refused.get(f"{self.command} {path}")) is not None:
                    return self._send(told[0], {"message": told[1]})
                if isinstance(fault, int) and fault >= 300:
                    return self._send(fault, {"message": "not now"})
                status, answer = forge.act(self.command, path, query, body)
                if fault == "lost":  # done, and nobody hears of it
                    self.close_connection = True
                    return None
                return self._send(status, answer)

            def _send(self, status: int, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                if status in (301, 302, 307):
                    self.send_header("Location", f"{forge.url}/elsewhere")
                self.send_header("Content-Type", "application/json; charset=utf-8")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_PUT = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"{HERE}:{self._server.server_port}"

    def act(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        """As the forges' documentation says."""
        if re.fullmatch(r"/repos/o/r/issues/7/comments|/projects/42/merge_requests/7/notes", path):
            if method == "GET":
                page = int(re.search(r"(?:^|&)page=(\d+)", query)[1])
                return 200, self.comments[(page - 1) * 100 : page * 100]
            self.comments.append(
                {"id": 1000 + len(self.comments), "body": body["body"], "user": {"login": "bot", "type": "Bot"}}
            )
            return 201, self.comments[-1]
        if one := re.fullmatch(r"(?:/repos/o/r/issues/comments|/projects/42/merge_requests/7/notes)/(\d+)", path):
            (found,) = (comment for comment in self.comments if comment["id"] == int(one[1]))
            assert method == ("PATCH" if path.startswith("/repos") else "PUT")
            found["body"] = body["body"]
            return 200, found
        if re.fullmatch(r"/repos/o/r/statuses/abc123|/projects/42/statuses/abc123", path):
            self.statuses.append(body)
            return 201, {"id": len(self.statuses), **body}
        if path == "/repos/o/r/check-runs" and len(body["output"]["annotations"]) <= 50:
            self.checks.append(body)
            return 201, {"id": 4, "name": body["name"], "status": "completed"}
        if path == "/repos/o/r/check-runs/4" and method == "PATCH" and len(body["output"]["annotations"]) <= 50:
            self.checks.append(body)
            return 200, {"id": 4}
        return 422, {"message": "Validation Failed"}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def forge():
    fake = FakeForge()
    yield fake
    fake.close()
