"""The keys that a server knows: read again when their file changes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from builders.errors import UserError
from cluster.api_errors import ApiError
from cluster.api_keys import KeyRecord, id_of, read_keys
from cluster.key_limits import KeyUse

_LOG = logging.getLogger("rankforge.keys")
_LOOK_EVERY_S = 1.0
_NOBODY = KeyRecord(id="0" * 16, name="nobody", sha256="0" * 64, created_s=0)

_Stamp = tuple[int, int, int] | None


class Keyring:
    """For one event loop. A file that cannot be read any more lets nobody in until it can."""

    def __init__(
        self, path: Path, clock: Callable[[], float] = time.monotonic, *, processes: int = 1
    ) -> None:
        """`processes` serve the same keys, each with its share of their limits."""
        self._path, self._clock, self._processes = path, clock, processes
        self._stamp = _stamp(path)
        self._uses = self._known = self._used(read_keys(path), {})
        self._looked_s = clock()

    def find(self, authorization: str) -> KeyUse:
        """The key of an Authorization header."""
        self._look()
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not (key := key.strip()):
            raise _unknown(
                "You didn't provide an API key. Provide it in an Authorization header: 'Authorization: "
                "Bearer YOUR_KEY'",
                None,
            )
        use = self._uses.get(id_of(key) or "")
        if not (use.record if use else _NOBODY).is_of(key) or use is None:
            raise _unknown("Incorrect API key provided", "invalid_api_key")
        return use

    def _look(self) -> None:
        """Once a second at most, and at the file only if its dates changed."""
        now_s = self._clock()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        if (stamp := _stamp(self._path)) == self._stamp:
            return
        self._stamp = stamp
        try:
            self._uses = self._known = self._used(read_keys(self._path), self._known)
            _LOG.info("%s: %d keys", self._path, len(self._uses))
        except UserError as error:
            self._uses = {}
            _LOG.error("%s; until it can be read, nobody has a key", error)

    def _used(self, records: tuple[KeyRecord, ...], before: Mapping[str, KeyUse]) -> dict[str, KeyUse]:
        """What has been used of those that were known stays used, though nobody was let in meanwhile."""
        found = {}
        for whole in records:
            record = whole.shared_by(self._processes)
            use = before.get(record.id) or KeyUse(record, self._clock)
            use.record = record
            found[record.id] = use
        return found


def _stamp(path: Path) -> _Stamp:
    """What changes when a file is replaced or written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unknown(message: str, code: str | None) -> ApiError:
    return ApiError(status=401, message=message, code=code, headers={"WWW-Authenticate": "Bearer"})
