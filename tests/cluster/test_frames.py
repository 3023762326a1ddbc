"""Messages over TCP: whole, in order, and only from who knows the secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from cluster.frames import Line, Listener, listen

HOST, SECRET = "127.0.0.1", b"s" * 16
MESSAGES = [b"", b"a", bytes(range(256)) * 4096, b"b" * 70]


@dataclass
class Heard:
    """By a listener."""

    messages: list[bytes] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    several: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, line: Line, message: bytearray) -> None:
        self.messages.append(bytes(message))
        self.lines.append(line)
        if len(self.messages) == len(MESSAGES):
            self.several.set()


@asynccontextmanager
async def listening(heard: Heard) -> AsyncIterator[Listener]:
    listener = await listen(HOST, SECRET, heard.take)
    try:
        yield listener
    finally:
        listener.close()


def line_of(lost: asyncio.Event) -> tuple[Line, asyncio.Queue[bytes]]:
    """One that calls, and what it hears."""
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    return Line(lambda _, message: heard.put_nowait(bytes(message)), lambda _: lost.set()), heard


def test_what_is_sent_before_there_is_a_connection_follows_and_answers_come_back() -> None:
    async def main() -> None:
        heard, lost = Heard(), asyncio.Event()
        async with listening(heard) as listener:
            line, answers = line_of(lost)
            line.write(SECRET)
            line.connect(HOST, listener.port)
            for message in MESSAGES:
                line.send(message)
            await heard.several.wait()
            assert heard.messages == MESSAGES
            heard.lines[0].send(b"answer")
            assert await answers.get() == b"answer"
        await lost.wait()

    asyncio.run(main())


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_are_whole_however_they_come(size: int) -> None:
    async def main() -> None:
        heard = Heard()
        line = Line(heard.take, lambda _: None)
        data = b"".join(len(message).to_bytes(4) + message for message in MESSAGES)
        for start in range(0, len(data), size):
            line.data_received(data[start : start + size])
        assert heard.messages == MESSAGES

    asyncio.run(main())


def test_who_says_another_secret_is_not_heard_and_sent_away() -> None:
    async def main() -> None:
        heard, lost = Heard(), asyncio.Event()
        async with listening(heard) as listener:
            line, _ = line_of(lost)
            line.write(b"t" * 16)
            line.connect(HOST, listener.port)
            line.send(b"message")
            await lost.wait()
            assert not heard.messages

    asyncio.run(main())


def test_where_nobody_listens_a_line_is_lost() -> None:
    async def main() -> None:
        async with listening(Heard()) as listener:
            port = listener.port
        lost = asyncio.Event()
        line, _ = line_of(lost)
        line.connect(HOST, port)
        await lost.wait()

    asyncio.run(main())


def test_a_line_that_was_closed_is_not_lost() -> None:
    """Neither while it is being connected nor later."""

    async def main() -> None:
        heard, lost = Heard(), asyncio.Event()
        async with listening(heard) as listener:
            early, _ = line_of(lost)
            early.write(SECRET)
            early.connect(HOST, listener.port)
            early.send(b"message")
            early.close()
            late, _ = line_of(lost)
            late.write(SECRET)
            late.connect(HOST, listener.port)
            for message in MESSAGES:
                late.send(message)
            await heard.several.wait()
            late.close()
            await asyncio.sleep(0.05)
            assert heard.messages == MESSAGES and not lost.is_set()

    asyncio.run(main())
