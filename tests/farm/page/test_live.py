"""Views that stay true: how often they are rendered, who is sent what, and who is let go."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from dtf_lightning.clock import SystemClock
from dtf_lightning.farm.page import live
from dtf_lightning.farm.page.live import EventStream, LiveViews, Shown, pause_after, revision_of

DEADLINE = 60.0


class Pool:
    """As much of one as views need."""

    def __init__(self) -> None:
        self.woken = []
        self.mirror = SimpleNamespace(revision=1)

    def change(self, revision: int = 0) -> None:
        self.mirror.revision = revision or self.mirror.revision + 1
        for look in self.woken:
            look()


class World:
    def __init__(self) -> None:
        self.pool = Pool()
        self.views = LiveViews(self.pool, SystemClock())
        self.html = "<p>one</p>"
        self.renderings = 0
        self.rendered = asyncio.Event()

    async def render(self) -> Shown:
        self.renderings += 1
        self.rendered.set()
        return Shown.of(self.pool.mirror.revision, self.html)

    def follow(self, seen: str = ""):
        return self.views.follow("/", self.render, seen)


async def view(stream) -> str:
    """The next that shows something."""
    async for event in stream:
        if b"event: view" in event:
            return event.decode()
    raise AssertionError("ended")


def test_how_often():
    """Seldom if it costs much; but a rendering that stood still does not hold up what comes after it."""
    assert pause_after(0.0) == pause_after(0.01) == 0.2
    assert pause_after(0.1) == pytest.approx(2.0)
    assert pause_after(3.0) == pause_after(60.0) == 3.0


def test_an_event():
    shown = Shown.of(7, "<p>a</p>\n<p>b</p>")
    assert shown.event().decode() == f"id: {shown.id}\nevent: view\ndata: <p>a</p>\ndata: <p>b</p>\n\n"
    assert revision_of(shown.id) == 7
    assert [revision_of(text) for text in ("", "x", "-1", "²-a", "9" * 40)] == [0] * 5


def run(job):
    async def limited():
        async with asyncio.timeout(DEADLINE):
            await job()

    asyncio.run(limited())


def test_a_change_is_sent_and_the_same_is_not():
    async def job():
        world = World()
        stream = world.follow()
        first = await view(stream)
        assert "data: <p>one</p>" in first
        world.pool.change()  # looks the same
        world.html = "<p>two</p>"
        world.pool.change()
        second = await view(stream)
        assert ("data: <p>two</p>" in second, second.startswith("id: 3-")) == (True, True)
        await stream.aclose()

    run(job)


def test_one_rendering_for_all_and_none_for_nobody():
    async def job():
        world = World()
        streams = [world.follow() for _ in range(50)]
        shown = await asyncio.gather(*map(view, streams))
        assert (len(set(shown)), world.renderings, world.views.num_readers) == (1, 1, 50)
        for stream in streams:
            await stream.aclose()
        world.pool.change()
        await asyncio.sleep(0)
        assert (world.renderings, world.views.num_readers) == (1, 0)

    run(job)


def test_five_a_second_however_much_changes():
    """Each shows the newest: none of the changes between is waited for."""

    async def job():
        world = World()
        stream = world.follow()
        began = asyncio.get_running_loop().time()

        async def storm():
            while True:
                world.html = f"<p>{world.pool.mirror.revision + 1}</p>"
                world.pool.change()
                await asyncio.sleep(0)

        storming = asyncio.create_task(storm())
        told = [await view(stream) for _ in range(4)]
        seconds = asyncio.get_running_loop().time() - began
        storming.cancel()
        assert world.renderings <= seconds * live.PER_SECOND + 1
        revisions = [revision_of(event.removeprefix("id: ")) for event in told]
        assert revisions == sorted(set(revisions))
        assert revisions[-1] - revisions[0] > 3
        await stream.aclose()

    run(job)


def test_who_comes_back_is_sent_what_looks_different():
    async def job():
        world = World()
        stream = world.follow()
        seen = (await view(stream)).removeprefix("id: ").partition("\n")[0]
        again = world.follow(seen)
        coming = asyncio.create_task(view(again))
        await asyncio.sleep(0)
        assert not coming.done()
        world.html = "<p>two</p>"
        world.pool.change()
        assert "<p>two</p>" in await coming
        await stream.aclose()
        await again.aclose()

    run(job)


def test_nobody_is_shown_what_is_older(monkeypatch):
    """A page that has seen revision 5 elsewhere comes to a coordinator that is at 1."""
    monkeypatch.setattr(live, "BEHIND", DEADLINE)

    async def job():
        world = World()
        stream = world.follow("5-digest")
        coming = asyncio.create_task(view(stream))
        for _ in range(3):
            await asyncio.sleep(0)
            assert (world.renderings, coming.done()) == (0, False)
            world.pool.change()
        world.html = "<p>five</p>"
        world.pool.change(5)
        assert "<p>five</p>" in await coming
        await stream.aclose()

    run(job)


def test_but_it_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(live, "BEHIND", 0.01)

    async def job():
        world = World()
        stream = world.follow("5-digest")
        assert "<p>one</p>" in await view(stream)
        await stream.aclose()

    run(job)


def test_silence_is_told(monkeypatch):
    monkeypatch.setattr(live, "BEAT", 0.01)

    async def job():
        world = World()
        stream = world.follow()
        await view(stream)
        async for event in stream:
            assert event == b"event: beat\ndata:\n\n"
            break
        await stream.aclose()

    run(job)


def test_the_end_of_the_coordinator_ends_all():
    async def job():
        world = World()
        stream = world.follow()
        await view(stream)
        rest = asyncio.create_task(_rest(stream))
        await asyncio.sleep(0)
        world.views.close()
        assert await rest == []

    run(job)


def test_a_view_that_cannot_be_rendered_lets_go(caplog):
    async def job():
        world = World()

        async def broken() -> Shown:
            raise RuntimeError("broken")

        assert await _rest(world.views.follow("/broken", broken)) == [b"retry: 1000\n\n"]

    run(job)
    assert "cannot be rendered" in caplog.text


async def _rest(stream) -> list[bytes]:
    return [event async for event in stream]


class TestAReader:
    async def receive(self):
        await asyncio.Event().wait()

    def test_who_is_too_slow_is_dropped(self):
        """A reader that takes nothing more holds nothing: not the view, and no memory but one event."""

        async def job():
            world = World()
            sent = []

            async def send(message):
                sent.append(message)
                if b"event: view" in message.get("body", b""):
                    await asyncio.Event().wait()

            await EventStream(world.follow(), slow=0.05)({"type": "http"}, self.receive, send)
            assert [message["type"] for message in sent] == ["http.response.start", *["http.response.body"] * 2]
            assert world.views.num_readers == 0

        run(job)

    def test_who_goes(self):
        async def job():
            world = World()

            async def send(message):
                pass

            async def receive():
                await world.rendered.wait()
                return {"type": "http.disconnect"}

            await EventStream(world.follow())({"type": "http"}, receive, send)
            assert world.views.num_readers == 0

        run(job)
