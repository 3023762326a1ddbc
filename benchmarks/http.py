"""What a streamed token costs through HTTP, beside a bare stream of events of the same size.

    python -m benchmarks.http [--streams 1 16 64] [--tokens 400]

Each server is a process of its own with one event loop; its engine has every token at once. `us a token` is
the processor time of the server's process, all its threads, by token, and `and core` is its inverse;
`a second` is what the clock says. What the client takes is in neither, though both share the machine.
`--tokens 1` makes it a whole request's. `first ms` is the median time to a first event of requests that are
alone. The goals: 200 us, 1000 a second and core. An engine in a thread that is faster than the event loop
hands it several tokens at once, which costs less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": True}
_COMPLETION = {"model": "fake", "prompt": "hello", "stream": True}
CASES = {
    "bare stream": ("bare", "/events/{tokens}", {}),
    "completions": ("api", "/v1/completions", _COMPLETION),
    "chat": ("api", "/v1/chat/completions", _CHAT),
    "chat, 5 log-probabilities": (
        "api",
        "/v1/chat/completions",
        {**_CHAT, "logprobs": True, "top_logprobs": 5},
    ),
    "chat, with keys and a log": ("guarded", "/v1/chat/completions", _CHAT),
    "chat, engine in a thread": ("thread", "/v1/chat/completions", _CHAT),
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """A process that serves."""

    port: int
    pid: int
    key: str

    @property
    def cpu_s(self) -> float:
        """Processor time so far, of all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """A line for every case and number of streams."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], help="at once")
    parser.add_argument("--tokens", type=int, default=400, help="of every stream")
    parser.add_argument("--total", type=int, default=40000, help="tokens of every case, about")
    options = parser.parse_args()
    print(f"{'case':<28}{'streams':>8}{'us a token':>12}{'a second':>10}{'and core':>10}{'first ms':>10}")
    for name, (kind, path, body) in CASES.items():
        with serving(kind) as server:
            fields = {**body, "max_tokens": options.tokens}
            request = request_of(path.format(tokens=options.tokens), fields, server.key)
            asyncio.run(measure(server, request, 4, 4 * options.tokens))  # warm
            first = asyncio.run(first_ms(server, request))
            for streams in options.streams:
                cpu, wall = asyncio.run(measure(server, request, streams, options.total))
                figures = f"{cpu * 1e6:>12.1f}{1 / wall:>10.0f}{1 / cpu:>10.0f}{first:>10.2f}"
                print(f"{name:<28}{streams:>8}{figures}", flush=True)


@contextmanager
def serving(kind: str) -> Iterator[Server]:
    """A server, while it is measured."""
    command = [sys.executable, "-m", "benchmarks.http_server", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "there is a pipe"
        port, pid, key = process.stdout.readline().split()
        yield Server(port=int(port), pid=int(pid), key=key)
        process.terminate()


def request_of(path: str, body: dict[str, object], key: str = "none") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    head += f"authorization: Bearer {key}\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data


async def measure(server: Server, request: bytes, streams: int, total: int) -> tuple[float, float]:
    """Seconds a token, of the server's processor and of the clock, with so many streams at once."""
    rounds = 0
    cpu, start, tokens = server.cpu_s, time.perf_counter(), 0
    while tokens < total:
        tokens += sum(await asyncio.gather(*(events_of(server, request) for _ in range(streams))))
        rounds += 1
    return (server.cpu_s - cpu) / tokens, (time.perf_counter() - start) / tokens


async def events_of(server: Server, request: bytes) -> int:
    """Reads a stream to its end; how many events it has."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    data = await reader.read(-1)
    writer.close()
    assert data.startswith(b"HTTP/1.1 200"), data[:300]
    return data.count(b"data: {")


async def first_ms(server: Server, request: bytes) -> float:
    """The median of requests, one after the other."""
    times = []
    for _ in range(50):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        start = time.perf_counter()
        writer.write(request)
        await reader.readuntil(b"data: ")
        times.append(time.perf_counter() - start)
        await reader.read(-1)
        writer.close()
    return statistics.median(times) * 1e3


if __name__ == "__main__":
    main()
