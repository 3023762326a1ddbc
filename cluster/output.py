"""An output folder: drafts lie beside it, and it appears whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builders.errors import ArtifactError, UserError
from builders.store import disk
from builders.store.scratch import Scratch


@contextmanager
def drafts_beside(output: Path) -> Iterator[Scratch]:
    """Where to make it; drafts of processes that were killed go first."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(output.parent / ".rankforge-drafts")
        scratch.sweep()
        yield scratch
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror}); choose another --output_dir"
        ) from error
    finally:
        disk.remove_if_empty(output.parent / ".rankforge-drafts")


def place(draft: Path, output: Path, scratch: Scratch, *, replace: bool) -> None:
    """Make a finished draft visible; only with `replace` in the stead of a checkpoint that is there."""
    if replace and output.exists():
        scratch.discard(output)
    try:
        draft.rename(output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ArtifactError(f"{output}: appeared meanwhile; look at it, then run again") from error
    disk.sync(output.parent)
