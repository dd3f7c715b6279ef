"""A client's requests where connections end at any place."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from dtf_lightning.farm.http import Connection, FarmRefused, FarmUnreachable

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"number": 7}'
REFUSAL = b'HTTP/1.1 422 Unprocessable\r\nContent-Length: 15\r\n\r\n{"error": "no"}'


@pytest.fixture
def answers():
    """Serves one answer for each connection, and then closes it; the fixture gives a function that starts that."""
    with contextlib.ExitStack() as stack:

        def start(*told: bytes) -> str:
            listener = socket.create_server(("127.0.0.1", 0))

            def serve() -> None:
                with listener, contextlib.suppress(OSError):
                    for answer in told:
                        connection, _ = listener.accept()
                        with connection:
                            connection.recv(1 << 16)
                            connection.sendall(answer)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            stack.callback(thread.join, 60)
            stack.callback(lambda: listener.fileno() == -1 or listener.shutdown(socket.SHUT_RDWR))
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start


@pytest.mark.parametrize("end", [0, 12, len(OK) - 14, len(OK) - 1])
def test_an_answer_that_is_cut_is_asked_again(answers, end):
    """Before it, in its head, before its body, in its body: the next answer counts."""
    connection = Connection((answers(OK[:end], OK),), "token", patience=60.0)
    assert connection.ask("GET", "/") == {"number": 7}
    connection.close()


def test_a_refusal_that_is_cut(answers):
    connection = Connection((answers(REFUSAL[:-3], REFUSAL),), "token", patience=60.0)
    with pytest.raises(FarmRefused, match="no"):
        connection.ask("GET", "/")
    connection.close()


def test_nobody_answers_whole(answers):
    connection = Connection((answers(OK[:-1]),), "token", patience=0.0)
    with pytest.raises(FarmUnreachable, match="does not answer"):
        connection.ask("GET", "/")
    connection.close()
