"""What the names of a shared home's objects say.

    files/KEY/ATTEMPT/SHA256       every file of one publisher's attempt, its manifest last
    entries/KEY/ATTEMPT-SHA256     no content: the name says that the attempt is whole, with that manifest
    used/KEY/last, pins/KEY/pin    when it was used last; that it must stay
    condemned/KEY/PRUNER           somebody is about to remove it
    probes/NUMBER                  somebody asks what time it is
    notes/NAME                     what is said of jobs, after its sha256; written again and again

An attempt is seen once its object below entries/ exists, which happens at once and last. Nothing below files/
is ever written twice, so a reader sees the bytes that the names promise, or that there are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FORMAT = "rankforge-store-home-1"
"""The object, without content, that makes a place a home."""

FOLDERS = ("files", "entries", "used", "pins", "condemned", "probes", "notes")
USED, PINNED, NOTE = "used/{}/last", "pins/{}/pin", "notes/{}"

_MARKER = re.compile("entries/([0-9a-f]{64})/([0-9a-f]{32})-([0-9a-f]{64})")


@dataclass(frozen=True, order=True)
class Attempt:
    """One publisher's objects of an entry."""

    key: str
    number: str
    """Chosen at random. Where several are whole, the lowest is the entry."""
    digest: str
    """sha256 of the manifest."""

    @property
    def marker(self) -> str:
        """The object that makes it an entry."""
        return f"entries/{self.key}/{self.number}-{self.digest}"

    @property
    def folder(self) -> str:
        """Where its files are."""
        return f"files/{self.key}/{self.number}"

    def object(self, digest: str) -> str:
        """The object of a file."""
        return f"{self.folder}/{digest}"


def attempts_in(names: Iterable[str]) -> list[Attempt]:
    """Those whose markers are among the names, in order; names of strangers say nothing."""
    return sorted(Attempt(*found.groups()) for name in names if (found := _MARKER.fullmatch(name)))
