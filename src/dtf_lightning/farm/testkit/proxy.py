"""`Proxy`: a TCP proxy on this machine whose connections can be cut, or made silent.

It listens on one port for as long as it lives; where it leads to may change, as a coordinator that is started again has
another port.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

CHUNK = 1 << 16
TIMEOUT = 10.0


class Proxy:
    """Runs in a thread of its own until `close`. Thread-safe."""

    def __init__(self) -> None:
        self._target: int | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="dtf-proxy")
        self._thread.start()
        self._writers: set[asyncio.StreamWriter] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._server: asyncio.Server = self._wait(self._listen())

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def lead_to(self, port: int | None) -> None:
        """Lead new connections to this port of 127.0.0.1; `None`: close them at once."""
        self._target = port

    def cut(self) -> None:
        """End all connections."""
        self._wait(self._cut())

    def be_silent(self, silent: bool) -> None:
        """Pass nothing on, though all connections stay and new ones are taken; or pass on again."""
        self._loop.call_soon_threadsafe(self._open.clear if silent else self._open.set)

    def close(self) -> None:
        """End it."""
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        self._loop.close()

    def _wait(self, job: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(TIMEOUT)

    async def _listen(self) -> asyncio.Server:
        self._open.set()
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        job = asyncio.current_task()
        assert job is not None
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        self._writers.add(writer)
        try:
            if self._target is None:
                return
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(their_writer)
            try:
                ways = [
                    asyncio.create_task(self._pass(*way)) for way in ((reader, their_writer), (their_reader, writer))
                ]
                try:
                    await asyncio.wait(ways)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._writers.discard(their_writer)
                their_writer.transport.abort()
        except OSError:
            return  # nobody listens there
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()
