"""What went wrong in a replica, from what Serve says of it."""

from __future__ import annotations

from builders.errors import RankforgeError, UserError, WorkerError

_OURS = "builders.errors."


def raised_in(said: str) -> RankforgeError:
    """The last line of a trace is what was raised; other words are the cause as they are."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else "no more is known"
    cause = next((line for line in reversed(lines) if "Error" in line), last)
    kind = UserError if _OURS in cause and "WorkerError" not in cause else WorkerError
    return kind((_OURS in cause and cause.rpartition(_OURS)[2].partition(": ")[2]) or cause)
