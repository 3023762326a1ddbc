"""How an actor's call ended: what it raised, or how its process died, in one line."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.exceptions import WorkerCrashedError as ProcessCrashedError

_DEATHS = (NodeDiedError, OutOfMemoryError, ProcessCrashedError, RayActorError)

MOST_CHARS = 600
"""Of what an error says: some of Ray's hold a traceback."""


def ending(call: Any) -> BaseException | None:
    """What ended a call that is over; for what it raised, that error itself. None: it returned."""
    try:
        ray.get(call)
    except RayTaskError as error:
        return error.cause
    except RayError as error:
        return error
    return None


def cause_of(error: BaseException | None) -> str:
    """In one line."""
    if error is None:
        return "it stopped, though nobody told it to"
    if isinstance(error, _DEATHS):
        return f"its process died ({exit_detail(str(error))})"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= MOST_CHARS else text[:MOST_CHARS] + ' ...'}"


def exit_detail(text: str) -> str:
    """The part of Ray's message that says how."""
    for mark in ("Worker exit detail: ", "The actor is dead because "):
        if mark in text:
            return text.split(mark)[1].split(". Some common causes")[0].strip().splitlines()[0]
    return text.strip().splitlines()[0]
