"""What a streamed token costs on the whole way: HTTP, Serve, the API, the wire, a replica, a fake engine.

    python -m benchmarks.serve [--streams 1 16 64] [--tokens 400] [--step_ms 0 5] [--proxy haproxy serve]

Starts a Ray of its own. `us a token` is the processor time of everything in it but the client, less what it
takes when nobody asks for anything, by token: that of `api`, `replica` and `proxy`, and Ray's own. `and core`
is its inverse; `a second` is what the clock says, on a machine that the client shares. `first ms` is the
median time to the first event of requests that are alone, of which the engine takes what is said first. With
`--step_ms 5` the engine gives every text a token each 5 ms, so that little is sent at once. The goals: 200
us, 1000 tokens a second and core, 5 ms more than the engine takes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve

from benchmarks.http import _CHAT, first_ms, measure, request_of
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
_IDLE_S = 8.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A cluster that serves, as `http.measure` knows one server."""

    port: int

    @property
    def cpu_s(self) -> float:
        """Processor time so far of all its processes."""
        return sum(self.parts.values())

    @property
    def parts(self) -> Counter[str]:
        """The same, by what they are."""
        found: Counter[str] = Counter()
        for pid in _below(os.getpid()):
            try:
                name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            part = next((part for mark, part in PARTS.items() if mark in name), "rest")
            found[part] += (int(fields[11]) + int(fields[12])) / _TICKS
        return found


def _below(root: int) -> list[int]:
    """Processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = set[int](), {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


def main() -> None:
    """A line for every case and number of streams."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64], help="at once")
    parser.add_argument("--tokens", type=int, default=400, help="of every stream")
    parser.add_argument("--total", type=int, default=20000, help="tokens of every case, about")
    parser.add_argument("--step_ms", type=float, nargs="+", default=[0, 5], help="of the engine")
    parser.add_argument("--proxy", nargs="+", default=["haproxy", "serve"], help="in front of the API")
    options = parser.parse_args()
    print(f"asking the engine directly: first token after {asyncio.run(direct_first_ms()):.2f} ms (median)")
    print(
        f"{'proxy':<9}{'step ms':>8}{'streams':>8}{'us a token':>12}{'api':>7}{'replica':>9}{'proxy':>7}"
        f"{'a second':>10}{'and core':>10}{'first ms':>10}"
    )
    for proxy in options.proxy:
        for step_ms in options.step_ms:
            with serving(proxy, step_ms / 1e3) as server:
                _report(options, proxy, step_ms, server)


def _report(options: argparse.Namespace, proxy: str, step_ms: float, server: Measured) -> None:
    request = request_of("/v1/chat/completions", {**_CHAT, "max_tokens": options.tokens})
    asyncio.run(measure(server, request, 4, 4 * options.tokens))  # type: ignore[arg-type]  # warm
    first = asyncio.run(first_ms(server, request)) if not step_ms else float("nan")  # type: ignore[arg-type]
    idle = _idle(server)
    print(f"idle: {sum(idle.values()) * 100:.0f}% of a core, the API's part {idle['api'] * 100:.0f}%")
    for streams in options.streams:
        total = options.total if not step_ms else min(options.total, 3 * streams * options.tokens)
        before, start = server.parts, time.perf_counter()
        _, wall = asyncio.run(measure(server, request, streams, total))  # type: ignore[arg-type]
        now, took = server.parts, time.perf_counter() - start
        tokens = took / wall
        spent = {part: (now[part] - before[part] - idle[part] * took) * 1e6 / tokens for part in now}
        cpu = sum(spent.values())
        print(
            f"{proxy:<9}{step_ms:>8g}{streams:>8}{cpu:>12.1f}{spent['api']:>7.1f}{spent['replica']:>9.1f}"
            f"{spent['proxy']:>7.1f}{1 / wall:>10.0f}{1e6 / cpu:>10.0f}{first:>10.2f}",
            flush=True,
        )


def _idle(server: Measured) -> Counter[str]:
    """Processor time a second of everything, when nobody asks for anything."""
    before = server.parts
    time.sleep(_IDLE_S)
    return Counter({part: (now - before[part]) / _IDLE_S for part, now in server.parts.items()})


@contextmanager
def serving(proxy: str, step_s: float) -> Iterator[Measured]:
    """A service of a fake model, while it is measured."""
    port = deployed._free_port()
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
            while not deployed._answers(service):
                pass
            yield Measured(port=port)
            serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
