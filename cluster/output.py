"""An output folder: drafts lie beside it, and it appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from builders.errors import ArtifactError, UserError
from builders.store import disk
from builders.store.scratch import Scratch


def real_place(output: Path) -> Path:
    """Where an output lies in truth: a link to a folder stays a link."""
    try:
        return output.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(f"{output}: not a path ({error}); choose another --output_dir") from error


@contextmanager
def drafts_beside(output: Path) -> Iterator[Scratch]:
    """Where to make it. Drafts of killed processes go first; new folders go if nothing came of it."""
    root = output.parent / ".rankforge-drafts"
    with ExitStack() as cleanup:
        try:
            output.exists()  # a name that is too long is refused here, not after the work
            for folder in _missing(output.parent):
                folder.mkdir(exist_ok=True)
                cleanup.callback(disk.remove_if_empty, folder)
            scratch = Scratch(root)
            cleanup.callback(disk.remove_if_empty, root)
            scratch.sweep()
            with scratch.folder() as probe:
                disk.write(probe / "probe", b"")
        except OSError as error:
            raise UserError(
                f"{output}: cannot be written ({error.strerror}); choose another --output_dir"
            ) from error
        yield scratch


def _missing(folder: Path) -> list[Path]:
    """The folders on the way that do not exist, outermost first."""
    return [step for step in (*reversed(folder.parents), folder) if not step.exists()]


def place(draft: Path, output: Path, *, replace: bool) -> None:
    """Make a finished draft visible; only with `replace` in the stead of what is there.

    What is there stays until the draft is in its place, and then is the draft.
    """
    if replace and output.exists():
        _exchange(draft, output)
    else:
        _appear(draft, output)
    disk.sync(output.parent)


def _appear(draft: Path, output: Path) -> None:
    try:
        draft.rename(output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ArtifactError(f"{output}: appeared meanwhile; look at it, then run again") from error


def _exchange(draft: Path, output: Path) -> None:
    """In one step where the system can; otherwise the old folder keeps a name of its own for a moment."""
    if _swapped(draft, output):
        return
    aside = output.with_name(output.name + ".replaced")
    disk.delete(aside)
    output.rename(aside)
    draft.rename(output)
    aside.rename(draft)


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


def _swapped(one: Path, other: Path) -> bool:
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
