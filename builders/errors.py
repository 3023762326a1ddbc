"""Every error that rankforge raises on purpose.

RankforgeError
├── UserError            what the user can fix: one line that names value, rule and remedy (exit code 2)
│   ├── ConfigError      a model configuration this code does not understand; names the field
│   ├── LayoutError      a split into ranks that does not work; names the sizes that would
│   ├── SourceError      a checkpoint to read that is missing, damaged or refused
│   ├── ArtifactError    a checkpoint or engine of ours that is damaged, foreign or in the way
│   └── EngineError      an engine that cannot be built for its target or run here; names the reason
├── JobCancelled         work that somebody has asked to stop (exit code 1)
├── BusyError            no room now; the same may be taken later
│   └── WordsError       tokens of another tokenizer than the engine's; encode again
├── AccuracyError        a model that is worse than was asked for; names measure and threshold (exit code 1)
└── WorkerError          a rank's worker died or raised; names the rank and the cause (exit code 1)
    ├── PeerError        a wait for other ranks that ended without them; names those that were missing
    └── RequestError     one request that cannot go on, while others do; names the cause
"""

from collections.abc import Iterable


class RankforgeError(Exception):
    """The root: catch this to catch everything that rankforge raises on purpose."""


class UserError(RankforgeError):
    """Something the user can fix."""


class ConfigError(UserError):
    """A model configuration that is not understood; the message names the field."""


class LayoutError(UserError):
    """A layout that cannot be made; the message names the sizes that can."""


class SourceError(UserError):
    """A source checkpoint that cannot be read."""


class ArtifactError(UserError):
    """A rankforge checkpoint or engine that cannot be used or written."""


class EngineError(UserError):
    """An engine that cannot be built for its target, or executed on this machine."""


class JobCancelled(RankforgeError):
    """A job that was told to stop."""


class BusyError(RankforgeError):
    """Refused for now: everything that may be under way or wait is; the message says what is full."""


class WordsError(BusyError):
    """Tokens that another tokenizer made than the one that the engine has now."""


class AccuracyError(RankforgeError):
    """A check of what a model is worth that it did not pass."""


class WorkerError(RankforgeError):
    """A worker that failed; the message names its rank and the cause."""


class PeerError(WorkerError):
    """A rank waited for others in vain; the message names both."""


class RequestError(WorkerError):
    """One request cannot go on; the engine does, with the others."""

    def __init__(self, request: str, message: str) -> None:
        super().__init__(message)
        self.request = request


def some_of(names: Iterable[str]) -> str:
    """The first of them and how many more: an error is one line."""
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
