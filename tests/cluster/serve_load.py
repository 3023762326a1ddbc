"""Callers who stream from a service while something happens to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cluster.serve_plan import Service
from tests.cluster.serve_case import is_ready, wait_for

MINUTES = 400.0
"""A bound that only a test that fails lives to see."""

PLAIN: Any = {"verify": False, "timeout": MINUTES}
"""Reading certificates is most of what a request would cost a test."""


@dataclass
class Answer:
    """What came of one request."""

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

    def take(self, line: str) -> None:
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

    @property
    def looks_whole(self) -> bool:
        """A client would take it for the end of the text."""
        return self.is_done or self.finish is not None


@dataclass
class Caller:
    """One who streams, again and again: there is load whenever something happens, on any machine."""

    url: str
    model: str
    prompt: str
    max_tokens: int
    answers: list[Answer] = field(default_factory=list)

    def run(self, over: threading.Event) -> None:
        """Until it is over, or an answer is not whole."""
        while self.ask().is_whole and not over.is_set():
            pass

    def ask(self) -> Answer:
        answer = Answer()
        self.answers.append(answer)
        body = {"model": self.model, "prompt": self.prompt, "max_tokens": self.max_tokens, "temperature": 0}
        body |= {"stream": True, "ignore_eos": True}
        try:
            with httpx.stream("POST", f"{self.url}/v1/completions", json=body, **PLAIN) as stream:
                answer.status = stream.status_code
                for line in stream.iter_lines():
                    answer.take(line)
        except httpx.TransportError as error:
            answer.broke = f"{type(error).__name__}: {error}"
        return answer

    @property
    def reads(self) -> bool:
        """It is in the midst of a text."""
        return bool(self.answers) and self.answers[-1].events > 2 and not self.answers[-1].looks_whole


@contextmanager
def calling(*groups: Sequence[Caller]) -> Iterator[None]:
    """All of them at once, until the block ends. It begins when some of each are in the midst of texts."""
    over = threading.Event()
    callers = [one for group in groups for one in group]
    with ThreadPoolExecutor(len(callers)) as pool:
        found = [pool.submit(one.run, over) for one in callers]
        try:
            for group in groups:
                wait_for(lambda group=group: sum(one.reads for one in group) > 1, MINUTES)
            yield
        finally:
            over.set()
    for one in found:
        one.result()


@contextmanager
def statuses(service: Service) -> Iterator[set[int]]:
    """Of the answers that somebody gets who asks all the time, until the block ends."""
    over, found = threading.Event(), set[int]()

    def ask() -> None:
        with httpx.Client(**PLAIN) as client:
            while not over.is_set():
                with suppress(httpx.TransportError):
                    found.add(client.get(f"{service.url}/v1/models").status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def ready_again(service: Service) -> float:
    """Waits until each process of the API says so; in seconds."""
    since = time.monotonic()
    wait_for(lambda: all(answers(service) for _ in range(8)), MINUTES)
    return time.monotonic() - since


def answers(service: Service) -> bool:
    """Whether it is ready, and can be reached at all."""
    try:
        return is_ready(service)
    except httpx.TransportError:
        return False


def unready(service: Service, *words: str) -> None:
    """Waits until it says that it is not, and this of the reason."""

    def says_so() -> bool:
        answer = httpx.get(f"{service.url}/ready", **PLAIN)
        return answer.status_code == 503 and all(word in answer.text for word in words)

    wait_for(says_so, MINUTES)


def damage(file: Path) -> bytes:
    """A copy without its last byte takes its place: who has mapped it keeps what it had."""
    whole = file.read_bytes()
    put(file, whole[:-1])
    return whole


def put(file: Path, data: bytes) -> None:
    draft = file.with_suffix(".draft")
    draft.write_bytes(data)
    draft.rename(file)
