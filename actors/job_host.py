"""What a Ray actor does that carries out jobs: one at a time, while it answers how far it is."""

from __future__ import annotations

import os
from typing import Any

import ray
import torch  # noqa: F401 (a worker that answers has imported what takes longest)

from actors.executor import AnyWork
from actors.rank_host import Whereabouts

NEWS = "news"
"""The group of calls that are answered at any time, which also shows that the process runs."""


class JobHost:
    """What a Ray actor is made of; a thread of its own answers for `NEWS`."""

    def __init__(self) -> None:
        self._news = (0, 0)

    def whereabouts(self) -> Whereabouts:
        """Where it is."""
        node = ray.get_runtime_context().get_node_id()
        return Whereabouts(node=node, host=ray.util.get_node_ip_address(), pid=os.getpid())

    def do(self, order: int, work: AnyWork, job: Any) -> tuple[Any, int]:
        """Carry out one job: its result, and how much it was. What this raises, Ray brings to who asked."""
        self._news = (order, 0)
        return work(job, self._advance), self._news[1]

    @ray.method(concurrency_group=NEWS)
    def news(self) -> tuple[int, int]:
        """Which order is in hand, or was last, and how much of it is done."""
        return self._news

    def _advance(self, amount: int) -> None:
        order, before = self._news
        self._news = (order, before + amount)
