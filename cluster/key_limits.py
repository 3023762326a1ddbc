"""What one key may use, and how much of it is used: requests and tokens by the minute, requests at once.

Counted in this process: of several that serve the same keys each grants its share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster.api_errors import ApiError, full
from cluster.api_keys import KeyRecord


@dataclass(slots=True)
class Allowance:
    """Fills up evenly within a minute, to no more than a minute's."""

    at_s: float
    """When it was looked at last."""
    spent: float = 0.0
    """Of a minute's; may be more than all of it, for what was only known afterwards."""

    def wait_s(self, wanted: float, per_minute: int, now_s: float) -> float:
        """Until there is so much. Who wants more than there ever is waits until there is all."""
        self.spent = max(0.0, self.spent - (now_s - self.at_s) * per_minute / 60)
        self.at_s = now_s
        missing = self.spent + min(wanted, per_minute) - per_minute
        return max(0.0, missing) * 60 / per_minute


class KeyUse:
    """Of one key, in one event loop."""

    def __init__(self, record: KeyRecord, clock: Callable[[], float] = time.monotonic) -> None:
        self.record = record
        """Its limits may change while requests are under way."""
        self._clock = clock
        self._requests = Allowance(clock())
        self._tokens = Allowance(clock())
        self.under_way = 0

    def begin(self) -> None:
        """A request; whoever begins one ends it. Nothing is spent on what is refused."""
        record = self.record
        if record.max_concurrent is not None and self.under_way >= record.max_concurrent:
            what = f"{self.under_way} requests of this key are under way, of {record.max_concurrent} at once"
            raise full(what, 1)
        if (most := record.requests_per_minute) is not None:
            wait_s = self._requests.wait_s(1, most, self._clock())
            _check(wait_s, "requests", f"Rate limit reached for requests: {most} a minute")
            self._requests.spent += 1
        self.under_way += 1

    def end(self) -> None:
        self.under_way -= 1

    def reserve(self, tokens: int) -> None:
        """What a request will take at most, as far as it says."""
        if (most := self.record.tokens_per_minute) is not None:
            wait_s = self._tokens.wait_s(tokens, most, self._clock())
            _check(
                wait_s, "tokens", f"Rate limit reached for tokens: {most} a minute, {tokens} more requested"
            )
            self._tokens.spent += tokens

    def settle(self, reserved: int, used: int) -> None:
        """What it took in fact."""
        if self.record.tokens_per_minute is not None:
            self._tokens.spent = max(0.0, self._tokens.spent + used - reserved)


def _check(wait_s: float, kind: str, message: str) -> None:
    if wait_s > 0:
        error: ApiError = full(f"{message}; try again in {wait_s:.1f} s", math.ceil(wait_s))
        error.type = kind
        raise error
