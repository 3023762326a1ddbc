"""The store inside one process: publish, find, evict, share, replace."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from builders.errors import ArtifactError
from builders.store import Store
from tests.builders.entries import PAYLOAD, add, never_build, recipe, scratch, write_payload


def names(store: Store) -> set[str]:
    listed = [item.manifest for item in store.listing()]
    return {str(manifest.recipe.inputs["name"]) for manifest in listed if manifest}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_built_once_then_found_whole(store: Store) -> None:
    assert store.find(recipe("a").key) is None
    built = store.get_or_build(recipe("a"), write_payload)
    again = store.get_or_build(recipe("a"), never_build)
    assert built == again == store.find(recipe("a").key, verify=True)
    assert built.path("rank0/program.bin").read_bytes() == PAYLOAD
    assert built.manifest.size_bytes == len(PAYLOAD) + 2
    assert scratch(store) == [] and store.verify() == {built.key: []}


def test_a_hit_is_fast(store: Store) -> None:
    def many_files(folder: Path) -> None:
        for index in range(100):
            (folder / f"rank{index}.bin").write_bytes(PAYLOAD)

    key = store.get_or_build(recipe("many"), many_files).key
    began = time.perf_counter()
    assert store.find(key) and time.perf_counter() - began < 0.25


def test_draft_is_invisible_until_published(store: Store) -> None:
    with store.publish(recipe("a")) as draft:
        write_payload(draft.path)
        draft.metadata["build_s"] = 1.5
        assert store.find(recipe("a").key) is None and store.listing() == []
        with pytest.raises(ArtifactError, match="not published yet"):
            _ = draft.entry
    assert draft.entry.manifest.metadata == {"build_s": 1.5} and not draft.path.exists()


def test_an_error_in_the_build_leaves_nothing(store: Store) -> None:
    def fail(folder: Path) -> None:
        write_payload(folder)
        raise KeyError("bug")

    with pytest.raises(KeyError, match="bug"):
        store.get_or_build(recipe("a"), fail)
    assert store.listing() == [] and scratch(store) == []
    assert add(store, "a")


def test_the_first_of_two_publishers_wins(store: Store) -> None:
    with store.publish(recipe("a")) as slow:
        write_payload(slow.path)
        with store.publish(recipe("a")) as fast:
            write_payload(fast.path)
    assert slow.entry == fast.entry and scratch(store) == []


def test_hashes_are_checked_once_per_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = add(store, "a").key
    fresh = Store(store.root)
    hashed: list[Path] = []
    monkeypatch.setattr("builders.store.disk.sha256", hashed.append)
    with pytest.raises(ArtifactError), fresh.open(key):
        pass
    assert len(hashed) == 2, "a fresh store hashes both files"
    with store.open(key), store.open(key, verify=False):
        assert len(hashed) == 2, "the store that built it knows its bytes"


def test_least_recently_used_goes_first(store: Store) -> None:
    for time_s, name in enumerate("abcd", start=1000):
        add(store, name, last_used_s=time_s)
    store.pin(recipe("a").key)
    assert store.find(recipe("b").key), "a hit makes b the most recent"
    one = store.listing()[0].size_bytes
    with store.open(recipe("c").key):
        os.utime(store.root / "used" / recipe("c").key, (1, 1))
        pruned = store.prune(3 * one)
        assert pruned.evicted == (recipe("d").key,) and pruned.freed_bytes == one
        assert store.prune(0).kept_bytes == 2 * one, "pinned and open entries stay"
    assert names(store) == {"a", "c"} and scratch(store) == []
    store.unpin(recipe("a").key)
    assert len(store.prune(0).evicted) == 2 and store.listing() == []


def test_eviction_follows_last_use_one_by_one(store: Store) -> None:
    keys = sorted((add(store, name).key for name in "abcdef"), reverse=True)
    for time_s, key in enumerate(keys, start=1000):
        os.utime(store.root / "used" / key, (time_s, time_s))
    left = sum(item.size_bytes for item in store.listing())
    for key in keys:
        pruned = store.prune(left - 1)
        assert pruned.evicted == (key,)
        left = pruned.kept_bytes
    assert left == 0


def test_every_publish_keeps_the_bound(store: Store) -> None:
    one = len(PAYLOAD) + 2000
    bounded = Store(store.root, max_bytes=2 * one)
    for time_s, name in enumerate("abc", start=1000):
        add(bounded, name, last_used_s=time_s)
    assert names(bounded) == {"b", "c"}
    assert add(Store(store.root, max_bytes=1), "d") and names(store) == {"d"}, "its own entry stays"


def test_open_and_pin_need_the_entry(store: Store) -> None:
    with pytest.raises(ArtifactError, match="build it first"), store.open(recipe("a").key):
        pass
    with pytest.raises(ArtifactError, match="only what is there"):
        store.pin(recipe("a").key)
    assert not store.remove(recipe("a").key) and store.prune(0).evicted == ()


def test_threads_build_once(store: Store) -> None:
    built, entries = [], []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.2)
        write_payload(folder)

    work = [
        threading.Thread(target=lambda: entries.append(store.get_or_build(recipe("a"), build)))
        for _ in range(8)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(built) == 1 and len(entries) == 8 and len({entry.key for entry in entries}) == 1


def test_waiting_is_bounded_and_names_the_holder(store: Store) -> None:
    def build(folder: Path) -> None:
        with pytest.raises(ArtifactError, match=f"held by process {os.getpid()} on .* after 0.1 s"):
            store.get_or_build(recipe("a"), never_build, wait_s=0.1)
        write_payload(folder)

    assert store.get_or_build(recipe("a"), build)


def test_readers_never_see_half_an_entry(store: Store) -> None:
    """Builders, readers and prunes at once: an open entry is whole, whatever else happens."""
    stop, failures = time.monotonic() + 1.5, []

    def read(name: str) -> None:
        while time.monotonic() < stop:
            try:
                with store.open(add(store, name).key) as entry:
                    assert entry.path("rank0/program.bin").read_bytes() == PAYLOAD
                time.sleep(0.01)
            except ArtifactError as error:
                if "build it first" not in str(error):
                    failures.append(error)

    work = [threading.Thread(target=read, args=(name,)) for name in "aabbcc"]
    for thread in work:
        thread.start()
    evicted = 0
    while time.monotonic() < stop:
        evicted += len(store.prune(0).evicted)
    for thread in work:
        thread.join()
    assert failures == [] and evicted > 3, evicted
    assert not any(store.verify().values()) and scratch(store) == []


def test_blobs_are_replaced_whole(store: Store) -> None:
    assert store.read_blob("timing-sm89") is None
    versions, seen = [bytes([digit]) * 300_000 for digit in range(8)], set()
    store.write_blob("timing-sm89", versions[0])

    def write() -> None:
        for version in versions:
            store.write_blob("timing-sm89", version)

    writers = [threading.Thread(target=write) for _ in range(3)]
    for thread in writers:
        thread.start()
    while any(thread.is_alive() for thread in writers):
        seen.add(store.read_blob("timing-sm89"))
    assert seen <= set(versions) and store.read_blob("timing-sm89") == versions[-1]
    assert scratch(store) == [] and store.prune(0).evicted == ()
