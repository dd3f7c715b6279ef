"""Preemption notices, against a local fake of the metadata servers' two forms."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dtf_lightning.clock import utc_text
from dtf_lightning.elastic.agent.notice import HttpNotice, Notice, NoticePoller, notice_source
from dtf_lightning.errors import SettingsError

NOW = 1_800_000_000.0


class FixedClock:
    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return NOW


@dataclass
class FakeMetadata:
    """What the server says, and whether it asks for a token first."""

    answer: tuple[int, str] = (404, "")
    token: str = ""
    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def metadata() -> Iterator[FakeMetadata]:
    fake = FakeMetadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.asked.append(self.path)
            refused = fake.token and self.headers.get("X-aws-ec2-metadata-token") != fake.token
            self.reply(*((401, "") if refused else fake.answer))

        def do_PUT(self) -> None:
            self.reply(200, fake.token)

        def reply(self, code: int, text: str) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/latest/meta-data/spot/instance-action"
        yield fake
        server.shutdown()
        thread.join()


ACTION = json.dumps({"action": "terminate", "time": utc_text(NOW + 90)})


@pytest.mark.parametrize(
    ("answer", "seconds_left"),
    [((404, ""), "none"), ((200, "FALSE"), "none"), ((200, "TRUE"), None), ((200, ACTION), 90.0)],
)
def test_forms(metadata, answer, seconds_left):
    """No notice, a notice, a notice with the time left."""
    metadata.answer = answer
    notice = HttpNotice(metadata.url, FixedClock())()
    assert (notice.seconds_left if notice is not None else "none") == seconds_left


def test_token(metadata):
    """A server that wants a token first gets asked for one, once."""
    metadata.token, metadata.answer = "secret", (200, ACTION)
    source = HttpNotice(metadata.url, FixedClock())
    assert source().reason.endswith("terminate")
    assert source() is not None
    assert len(metadata.asked) == 3


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, "[]"), (500, "")])
def test_unknown_answers(metadata, answer):
    """Neither a notice nor silence."""
    metadata.answer = answer
    with pytest.raises((ValueError, OSError)):
        HttpNotice(metadata.url)()


def test_poller_survives_errors_and_tells_once(caplog):
    """A source that fails is asked again, complained about once; the first notice ends the asking."""
    answers = iter([OSError("unreachable"), OSError("unreachable"), None, Notice("taken away", 30.0)])
    told, left = [], threading.Event()

    def source() -> Notice | None:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def leave(reason: str, within: float | None) -> None:
        told.append((reason, within))
        left.set()

    poller = NoticePoller(source, 0.001, leave)
    poller.start()
    assert left.wait(60)
    poller.close()
    assert told == [("taken away", 30.0)]
    assert sum("does not answer" in record.message for record in caplog.records) == 1


def test_pluggable_source():
    """`package.module:callable`; anything else is refused with what was expected."""
    assert notice_source("dtf_lightning.clock:SystemClock") is not None
    for spec in ("no.such.module:name", "dtf_lightning.clock:nothing", "plain", "dtf_lightning.clock:__name__"):
        with pytest.raises(SettingsError, match=r"package\.module:callable|a callable"):
            notice_source(spec)
