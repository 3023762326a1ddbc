"""How the members of a group find each other, and who is missing when a wait ends without them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from builders.errors import PeerError

_ROLL_CALL_S = 2.0
"""How much later than the first a peer may notice that the same wait has failed."""

_OVER = "over"
"""What the store holds once nothing that is waited for will come."""


def host_store(host: str, timeout_s: float) -> TCPStore:
    """A store for everyone who is told its host and `port`. It lasts as long as this object."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """The store that another process hosts."""
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)


def call_off(store: Store) -> None:
    """Whoever waits for a group to form, or will, waits no longer."""
    store.set(_OVER, "")


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """A place in a group that is about to form."""

    store: Store
    name: str
    """Of the group; no other of the same store has it."""
    ranks: tuple[int, ...]
    """Which ranks of the model the members are."""
    index: int
    """Which of the members this is."""
    timeout_s: float
    """How long any wait for the others may take."""
    host: str = "127.0.0.1"
    """This process's address, as the others reach it."""

    @property
    def rank(self) -> int:
        return self.ranks[self.index]

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def scope(self) -> PrefixStore:
        """The group's own part of the store."""
        return PrefixStore(self.name, self.store)

    def arrive(self) -> None:
        """Wait until all members are here."""
        missing = self._roll_call("here", self.timeout_s)
        if missing:
            over = self.store.check([_OVER])
            bound = "before it was called off" if over else f"within {self.timeout_s:g} s"
            raise PeerError(f"rank {self.rank}: {_named(missing)} did not come to group {self.name} {bound}")

    def fail(self, action: str, cause: str) -> NoReturn:
        """Say which members did not fail in the same way: a wait was in vain because of them."""
        missing = self._roll_call("failed", min(_ROLL_CALL_S, self.timeout_s))
        blamed = f"no answer from {_named(missing)}" if missing else "all members are left waiting"
        raise PeerError(f"rank {self.rank}: {action} in group {self.name}: {blamed} ({_first_line(cause)})")

    def _roll_call(self, word: str, seconds: float) -> list[int]:
        """Say a word and listen who else does; the ranks that stay silent."""
        try:
            self.scope.set(f"{word}/{self.rank}", "")
            return self._silent(word, time.monotonic() + seconds)
        except RuntimeError as error:  # whoever holds the store is gone
            raise PeerError(
                f"rank {self.rank}: the store of group {self.name} is gone ({_first_line(str(error))})"
            ) from error

    def _silent(self, word: str, deadline: float) -> list[int]:
        while True:
            silent = [rank for rank in self.ranks if not self.scope.check([f"{word}/{rank}"])]
            if not silent or time.monotonic() > deadline or self.store.check([_OVER]):
                return silent
            time.sleep(0.01)


def _named(ranks: Iterable[int]) -> str:
    return "rank " + ", rank ".join(map(str, ranks))


def _first_line(text: str) -> str:
    """Without the place in a library's source."""
    return text.strip().splitlines()[0].split("] ")[-1][:200] if text.strip() else "no cause given"
