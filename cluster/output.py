"""An output, folder or file: drafts lie beside it, and it appears whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from builders.errors import ArtifactError, UserError
from builders.store import disk
from builders.store.scratch import Scratch
from cluster.interrupts import HEARD


def real_place(output: Path, option: str = "--output_dir") -> Path:
    """Where an output lies in truth: a link to it stays a link."""
    try:
        return output.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(f"{output}: not a path ({error}); choose another {option}") from error


@contextmanager
def drafts_beside(output: Path, option: str = "--output_dir") -> Iterator[Scratch]:
    """Where to make it. Drafts of killed processes go first; new folders go if nothing came of it."""
    root = output.parent / ".rankforge-drafts"
    with ExitStack() as cleanup:
        try:
            with HEARD.held():
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
                f"{output}: cannot be written ({error.strerror}); choose another {option}"
            ) from error
        yield scratch


def check_file(option: str, output: Path) -> None:
    """Refuse, before any work is done, what cannot be written in the end."""
    place = real_place(output, option)
    try:
        has_folder, is_taken = place.parent.is_dir(), place.exists() and not place.is_file()
    except OSError as error:
        raise UserError(f"{option}={output}: cannot be written ({error.strerror}); choose another") from error
    if not has_folder:
        raise UserError(f"{option}={output}: there is no folder {place.parent}; make it, or choose another")
    if is_taken:
        raise UserError(f"{option}={output}: exists and is not a file; choose another")
    with drafts_beside(place, option):
        pass


@contextmanager
def new_file(option: str, output: Path) -> Iterator[Path]:
    """A draft to write; once that is done it takes the file's place, at once."""
    place = real_place(output, option)
    with drafts_beside(place, option) as scratch, scratch.folder() as folder:
        with disk.full_disk_refused(place.parent, f"{option}={output}", folder):
            yield folder / place.name
            disk.sync(folder / place.name)
        (folder / place.name).replace(place)
    disk.sync(place.parent)


def _missing(folder: Path) -> list[Path]:
    """The folders on the way that do not exist, outermost first."""
    return [step for step in (*reversed(folder.parents), folder) if not step.exists()]


def place(draft: Path, output: Path, *, replace: bool) -> bool:
    """Make a finished draft visible; False if something else appeared in its place meanwhile.

    Only with `replace` in the stead of what is there, which stays until the draft is in its place, and
    then is the draft.
    """
    if replace and output.exists():
        _exchange(draft, output)
    elif not _appears(draft, output):
        return False
    disk.sync(output.parent)
    return True


def _appears(draft: Path, output: Path) -> bool:
    try:
        draft.rename(output)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def link(source: Path, target: Path) -> None:
    """Files that nobody writes again are shared where the file system can, copied where it cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        disk.sync(target)


def in_the_way(output: Path) -> ArtifactError:
    """Of what appeared meanwhile and is something else."""
    return ArtifactError(f"{output}: appeared meanwhile; look at it, then run again")


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
