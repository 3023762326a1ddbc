"""The store on a real file system without room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders.errors import ArtifactError
from builders.store import Store
from tests.builders.entries import add, never_build, recipe, scratch
from tests.disks import small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "1m") as found:
        yield found.here


def write_too_much(folder: Path) -> None:
    (folder / "big.bin").write_bytes(bytes(2 << 20))


def write_all_there_is(folder: Path) -> None:
    """Leaves no room for the manifest."""
    with (folder / "big.bin").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.mark.parametrize("build", [write_too_much, write_all_there_is])
def test_full_disk_is_one_error_and_hurts_nothing(disk: Path, build: Callable[[Path], None]) -> None:
    store = Store(disk / "store")
    kept = add(store, "kept")
    with pytest.raises(ArtifactError, match=r"disk full after [\d,]+ bytes of engine .* than the"):
        store.get_or_build(recipe("big"), build)
    with pytest.raises(ArtifactError, match=r"needs 2,097,152 bytes and [\d,]+ are free"):
        store.get_or_build(recipe("big"), never_build, needs_bytes=2 << 20)
    with pytest.raises(ArtifactError, match=r"disk full .* of blob timing"):
        store.write_blob("timing", bytes(2 << 20))
    assert store.verify() == {kept.key: []} and scratch(store) == []
    assert store.get_or_build(recipe("kept"), never_build) == kept and add(store, "more")


def test_a_full_disk_can_still_be_read_and_pruned(disk: Path) -> None:
    store = Store(disk / "store")
    kept = add(store, "kept")
    write_all_there_is(disk)
    with store.open(kept.key), pytest.raises(ArtifactError, match="disk full"):
        add(store, "more")
    assert store.prune(0).evicted == (kept.key,)
