"""Requests that go on one after another: it may be one of them on which ranks fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from actors.messages import Begun, Request, Tokens

STEADY_STEPS = 32
"""So many steps count as a token: a beam search gives none before its end."""


@dataclass(kw_only=True)
class Trials:
    """The next begins when the one before has got a token, or is gone."""

    waiting: deque[Request] = field(default_factory=deque)
    current: str | None = None
    """Begun, and without a token since."""
    steps: int = 0
    """Done since."""

    def start(self, requests: Iterable[Request]) -> None:
        self.waiting, self.current = deque(requests), None

    def next(self) -> Request | None:
        """What is to begin now."""
        if self.current is not None or not self.waiting:
            return None
        request = self.waiting.popleft()
        self.current, self.steps = request.id, 0
        return request

    def take(self, news: Sequence[Tokens]) -> None:
        """What a step has brought."""
        self.steps += 1
        if self.steps >= STEADY_STEPS or any(one.request == self.current for one in news):
            self.current = None

    def forget(self, request: str) -> None:
        """It has ended without a token."""
        if request == self.current:
            self.current = None

    def cancel(self, request: str, index: int | None) -> None:
        """The texts of a request that waits, or one of them."""
        kept = (one if one.id != request else _without(one, index) for one in self.waiting)
        self.waiting = deque(one for one in kept if one)


def _without(request: Request, index: int | None) -> Request | None:
    """What is left of a request."""
    if index is None or request.params.num_beams > 1:
        return None
    begun = request.begun or Begun(((),) * request.params.n)
    texts = tuple(None if place == index else text for place, text in enumerate(begun.texts))
    return replace(request, begun=replace(begun, texts=texts)) if any(t is not None for t in texts) else None
