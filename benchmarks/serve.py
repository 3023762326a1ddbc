"""What a streamed token costs on the whole way: HTTP, Serve, the API, the wire, a replica, a fake engine.

    python -m benchmarks.serve [--streams 1 16 64] [--tokens 400] [--step_ms 0 5] [--proxy haproxy serve]

Starts a Ray of its own. `us a token` is the processor time of everything in it but the client, less what it
takes when nobody asks for anything, by token: that of `api`, `replica` and `proxy`, and Ray's own (`rest`).
What is taken off is in `idle`, as it would be by token: it costs what it costs, whoever asks. `wakes` are how
often a thread goes to sleep, by token. `and core` is the inverse of `us a token`; `a second` is what the
clock says, on a machine that the client shares. `first ms` is the median time to the first event of requests
that are alone, of which the engine takes what is said first. With `--step_ms 5` the engine gives every text a
token each 5 ms, so that little is sent at once. Of `--rounds`, the one that costs least counts: others' work
on the machine adds and never takes away. Lines that begin with `request` are of completions of one token,
which are not streamed, over connections that stay open: `us` by request. `--threads` adds what each kind of
thread takes. The goals: 200 us, 1000 tokens a second and core, 5 ms more than the engine takes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import serve

from benchmarks.http import _CHAT, events_of, first_ms, request_of
from benchmarks.processes import Spent, between, look
from benchmarks.serve_app import direct_first_ms, fake
from cluster import deployed
from cluster.serve_plan import Service
from cluster.serving import api

PARTS = {
    "api:Api": "api",
    "fake:Model": "replica",
    "haproxy": "proxy",
    "ProxyActor": "proxy",
    "HAProxyManager": "proxy",
}
_IDLE_S, _IDLE_LOOKS = 6.0, 4
_SHOWN_US = 2.0
"""Threads that take less are not listed."""
_COLUMNS = "api replica proxy rest".split()

Load = Callable[[int], Coroutine[Any, Any, int]]
"""Asks for all that a round has, with so many at once; how many tokens or requests there were."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where a cluster serves."""

    port: int


@dataclass(frozen=True, kw_only=True)
class Round:
    """Of each token or request."""

    spent: Spent
    """By all, what goes on anyway too."""
    idle: Spent
    """What goes on anyway."""
    wall_s: float

    @property
    def added(self) -> Spent:
        return self.spent.less(self.idle, 1)

    @property
    def cpu_s(self) -> float:
        return self.added.parts.total()


def main() -> None:
    """A line for every case and number of streams."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], help="at once")
    parser.add_argument("--tokens", type=int, default=400, help="of every stream")
    parser.add_argument("--total", type=int, default=20000, help="tokens of every round, about")
    parser.add_argument("--step_ms", type=float, nargs="+", default=[0, 5], help="of the engine")
    parser.add_argument("--proxy", nargs="+", default=["haproxy", "serve"], help="in front of the API")
    parser.add_argument("--rounds", type=int, default=5, help="of every case; the least counts")
    parser.add_argument("--requests", type=int, default=1000, help="of one token, of every round")
    parser.add_argument("--threads", action="store_true", help="what each kind of thread takes")
    options = parser.parse_args()
    print(f"asking the engine directly: first token after {asyncio.run(direct_first_ms()):.2f} ms (median)")
    print(
        f"{'':<8}{'proxy':<9}{'step ms':>8}{'streams':>8}{'us a token':>12}"
        + "".join(f"{name:>9}" for name in _COLUMNS)
        + f"{'idle':>9}{'wakes':>7}{'a second':>10}{'and core':>10}{'first ms':>10}"
    )
    for proxy in options.proxy:
        for step_ms in options.step_ms:
            with serving(proxy, step_ms / 1e3) as server:
                _report(options, proxy, step_ms, server)


def _report(options: argparse.Namespace, proxy: str, step_ms: float, server: Server) -> None:
    request = request_of("/v1/chat/completions", {**_CHAT, "max_tokens": options.tokens})
    stream = Streams(server, request, options)
    asyncio.run(stream(4))  # warm
    first = asyncio.run(first_ms(server, request)) if not step_ms else float("nan")  # type: ignore[arg-type]
    idle = _idle()
    shares = "".join(f", {part} {share * 100:.1f}" for part, share in sorted(idle.parts.items()))
    print(f"idle: {idle.parts.total() * 100:.1f}% of a core{shares}")
    for streams in options.streams:
        best = _least(options.rounds, stream, streams, idle)
        _print("token", proxy, step_ms, streams, best, first)
        _print_threads(best, options.threads)
    if step_ms:
        return
    asyncio.run(whole_answers(server, options.requests)(4))
    for streams in options.streams:
        best = _least(options.rounds, whole_answers(server, options.requests), streams, idle)
        _print("request", proxy, step_ms, streams, best, float("nan"))
        _print_threads(best, options.threads)


@dataclass(frozen=True)
class Streams:
    """Streamed answers, each on a connection of its own."""

    server: Server
    request: bytes
    options: argparse.Namespace

    async def __call__(self, streams: int) -> int:
        tokens = 0
        while tokens < min(self.options.total, 3 * streams * self.options.tokens):
            found = (events_of(self.server, self.request) for _ in range(streams))  # type: ignore[arg-type]
            tokens += sum(await asyncio.gather(*found))
        return tokens


def whole_answers(server: Server, count: int) -> Load:
    """Completions of one token, one after the other on every connection."""
    body = {"model": "fake", "prompt": "hello", "max_tokens": 1}
    request = request_of("/v1/completions", body).replace(b"connection: close\r\n", b"")

    async def connection(each: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(each):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
        writer.close()

    async def all_of_them(streams: int) -> int:
        await asyncio.gather(*(connection(count // streams) for _ in range(streams)))
        return count // streams * streams

    return all_of_them


def _least(rounds: int, load: Load, streams: int, idle: Spent) -> Round:
    return min((_round(load, streams, idle) for _ in range(rounds)), key=lambda one: one.cpu_s)


def _round(load: Load, streams: int, idle: Spent) -> Round:
    before, start = look(os.getpid(), PARTS), time.perf_counter()
    count = asyncio.run(load(streams))
    wall_s = time.perf_counter() - start
    spent = between(before, look(os.getpid(), PARTS))
    took = time.perf_counter() - start
    return Round(spent=spent.by(count), idle=idle.by(count / took), wall_s=wall_s / count)


def _print(unit: str, proxy: str, step_ms: float, streams: int, found: Round, first: float) -> None:
    parts, cpu_s = found.added.parts, found.cpu_s
    columns = "".join(f"{parts[name] * 1e6:>9.1f}" for name in _COLUMNS)
    print(
        f"{unit:<8}{proxy:<9}{step_ms:>8g}{streams:>8}{cpu_s * 1e6:>12.1f}{columns}"
        f"{found.idle.parts.total() * 1e6:>9.1f}{found.added.wakes.total():>7.1f}"
        f"{1 / found.wall_s:>10.0f}{1 / cpu_s:>10.0f}{first:>10.2f}",
        flush=True,
    )


def _print_threads(found: Round, is_wanted: bool) -> None:
    if not is_wanted:
        return
    added = found.added
    for (part, name), cpu_s in added.cpu_s.most_common():
        if cpu_s * 1e6 >= _SHOWN_US:
            wakes = added.wakes[part, name]
            print(f"    {part:<9}{name:<18}{cpu_s * 1e6:>8.1f} us{wakes:>7.2f} wakes", flush=True)


def _idle() -> Spent:
    """A second of everything, when nobody asks for anything: the least of several looks."""
    return min((_quiet() for _ in range(_IDLE_LOOKS)), key=lambda spent: spent.parts.total())


def _quiet() -> Spent:
    before = look(os.getpid(), PARTS)
    time.sleep(_IDLE_S)
    return between(before, look(os.getpid(), PARTS)).by(_IDLE_S)


@contextmanager
def serving(proxy: str, step_s: float) -> Iterator[Server]:
    """A service of a fake model, while it is measured."""
    port = deployed.free_port()
    schema = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": []}
    if proxy == "serve":
        schema["controller_options"] = {"runtime_env": {"env_vars": {"RAY_SERVE_ENABLE_HA_PROXY": "0"}}}
    service = Service(schema=schema, models={}, is_file=False)
    ray.init(
        address="local", num_cpus=8, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR
    )
    try:
        with tempfile.TemporaryDirectory(prefix="rankforge-") as folder:
            deployed._start(service, Path(folder))
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            targets = [
                serve.RunTarget(target=api({"limits": {"max_waiting": 10**6}}), name="api"),
                serve.RunTarget(target=fake(step_s), name="fake", route_prefix=None),
            ]
            serve.run_many(targets)
            while deployed._unready(service):
                time.sleep(0.1)
            yield Server(port=port)
            serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
