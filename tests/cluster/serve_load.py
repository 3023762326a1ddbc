"""Callers who stream from a service while something happens to it, and its processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from cluster.serve_plan import Service
from tests.cluster.serve_case import is_ready, wait_for

MINUTES = 180.0
"""A bound that only a test that fails lives to see."""


@dataclass
class Caller:
    """One who streams, once."""

    url: str
    model: str
    prompt: str
    max_tokens: int
    text: str = ""
    events: int = 0
    status: int = 0
    finish: str | None = None
    is_done: bool = False
    """The stream ended as streams do."""
    error: str | None = None
    """What the service said."""
    broke: str | None = None
    """What became of the connection."""

    def run(self) -> Caller:
        body = {"model": self.model, "prompt": self.prompt, "max_tokens": self.max_tokens, "temperature": 0}
        body |= {"stream": True, "ignore_eos": True}
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=MINUTES) as answer:
                self.status = answer.status_code
                for line in answer.iter_lines():
                    self._take(line)
        except httpx.TransportError as error:
            self.broke = f"{type(error).__name__}: {error}"
        return self

    def _take(self, line: str) -> None:
        if not line.startswith("data: {"):
            self.is_done |= line == "data: [DONE]"
            self.error = line if self.status != 200 else self.error
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.error = event["error"]["message"]
            return
        self.events += 1
        for choice in event["choices"]:
            self.text += choice["text"]
            self.finish = choice["finish_reason"] or self.finish

    @property
    def is_whole(self) -> bool:
        return self.is_done and self.finish == "length" and not (self.error or self.broke)


@contextmanager
def calling(callers: Sequence[Caller], begun: int = 2) -> Iterator[list[Future[Caller]]]:
    """All of them at once; some have begun to read."""
    with ThreadPoolExecutor(len(callers)) as pool:
        found = [pool.submit(caller.run) for caller in callers]
        wait_for(lambda: sum(one.events > 2 for one in callers) >= begun, MINUTES)
        assert not all(one.done() for one in found), "they read still"
        yield found


def our_processes(title: str) -> list[psutil.Process]:
    """Of the Ray that this process has started; Ray names what runs in a process."""
    return [one for one in psutil.Process().children(recursive=True) if title in _title(one)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:2])
    except psutil.Error:
        return ""


def ready_again(service: Service, *, after: Callable[[], object] = lambda: True) -> float:
    """Waits until it is; in seconds."""
    since = time.monotonic()
    wait_for(lambda: after() and answers(service), MINUTES)
    return time.monotonic() - since


def answers(service: Service) -> bool:
    """Whether it is ready, and can be reached at all."""
    try:
        return is_ready(service)
    except httpx.TransportError:
        return False


def unready(service: Service) -> str:
    """Waits until it says why it is not."""
    said: list[str] = []

    def looked() -> bool:
        answer: Any = httpx.get(f"{service.url}/ready", timeout=30)
        said[:] = [answer.text]
        return bool(answer.status_code == 503)

    wait_for(looked, MINUTES)
    return said[0]


def damage(file: Path) -> bytes:
    """A copy without its last byte takes its place: who has mapped it keeps what it had."""
    whole = file.read_bytes()
    put(file, whole[:-1])
    return whole


def put(file: Path, data: bytes) -> None:
    draft = file.with_suffix(".draft")
    draft.write_bytes(data)
    draft.rename(file)
