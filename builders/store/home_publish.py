"""Publishing to a shared home: two at once both succeed, and one that dies has shown nothing."""

from __future__ import annotations

import hashlib
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from builders.errors import ArtifactError
from builders.store.attempts import Attempt
from builders.store.manifest import Manifest
from builders.store.objects import at_once

if TYPE_CHECKING:
    from builders.store.home import Home

UPLOADS_AT_ONCE = 4
DEAD_PRUNER_S = 600.0
"""A pruner takes seconds for an entry; what is condemned for longer belongs to nobody."""

_WAIT_S = 60.0
_TRIES = 3


def publish(home: Home, folder: Path, manifest: Manifest) -> None:
    """Upload an entry, unless it is there."""
    key = manifest.recipe.key
    for _ in range(_TRIES):
        if home.attempts(key) or _publish(home, folder, manifest):
            return
    raise ArtifactError(f"{home.url}/entries/{key}: pruned as fast as it is published; try again later")


def _publish(home: Home, folder: Path, manifest: Manifest) -> bool:
    data = manifest.to_bytes()
    attempt = Attempt(manifest.recipe.key, uuid.uuid4().hex, hashlib.sha256(data).hexdigest())
    try:
        _upload(home, attempt, folder, manifest)
        home.objects.write(attempt.object(attempt.digest), data)
        return _show(home, attempt, manifest)
    except ArtifactError:
        with suppress(ArtifactError):
            home.drop(attempt)
        raise


def _upload(home: Home, attempt: Attempt, folder: Path, manifest: Manifest) -> None:
    by_digest = {record.sha256: name for name, record in manifest.files.items()}

    def upload(digest: str, stop: Event) -> None:
        if not stop.is_set():
            home.objects.upload(attempt.object(digest), folder / by_digest[digest], stop)

    at_once(upload, by_digest, UPLOADS_AT_ONCE)


def _show(home: Home, attempt: Attempt, manifest: Manifest) -> bool:
    """Let an attempt be seen, if it is whole; where others were faster, theirs is the entry.

    Of several that are seen, everybody drops all but the lowest: so one stays, whoever sees which of them.
    """
    if home.attempts(attempt.key):
        home.drop(attempt)
        return True
    if wrong := home.wrong_sizes(attempt, manifest):
        raise ArtifactError(f"{home.url}/{attempt.folder}: after the upload {wrong[0]}; try again")
    home.objects.write(attempt.marker)
    wait_for_pruners(home, attempt.key)
    whole = home.attempts(attempt.key)
    if len(whole) > 1:
        for other in whole[1:]:
            home.drop(other)
        whole = home.attempts(attempt.key)
    if attempt not in whole[:1] or not home.wrong_sizes(attempt, manifest):
        return bool(whole)
    home.drop(attempt)
    return False


def wait_for_pruners(home: Home, key: str) -> None:
    """Return when nobody is about to remove the entry.

    A pruner says so first and looks then; the caller has written first and looks now. So a pruner that is not
    waited for has seen what the caller wrote.
    """
    until = time.monotonic() + _WAIT_S
    while _condemned(home, key):
        if time.monotonic() > until:
            raise ArtifactError(
                f"{home.url}/entries/{key}: still being pruned after {_WAIT_S:g} s; try again later"
            )
        time.sleep(0.05)


def _condemned(home: Home, key: str) -> bool:
    found = home.objects.listing(f"condemned/{key}")
    if not found:
        return False
    now_s = home.objects.now_s()
    return any(now_s - one.modified_s < DEAD_PRUNER_S for one in found.values())
