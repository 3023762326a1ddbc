"""What the store refuses: names that escape, links, damaged and foreign entries."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.errors import ArtifactError
from builders.store import Entry, Store
from builders.store.disk import check_name
from tests.builders.entries import add, recipe, scratch, write_payload


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("name", ["", "/a", "a/../b", "..", ".", "a//b", "a\\b", "a\nb", "a/"])
def test_names_that_leave_the_entry_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ArtifactError, match="relative path"):
        check_name(name)
    with pytest.raises(ArtifactError, match="relative path"):
        store.write_blob(name, b"")
    with pytest.raises(ArtifactError, match="not in"):
        add(store, "a").path(name)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda folder: (folder / "link").symlink_to("config.json"), "plain file"),
        (lambda folder: (folder / "dir").symlink_to("rank0"), "plain file"),
        (lambda folder: os.link(folder / "config.json", folder / "hard"), "plain file"),
        (lambda folder: os.mkfifo(folder / "pipe"), "plain file"),
        (lambda folder: (folder / "manifest.json").touch(), "the store writes this file"),
    ],
)
def test_drafts_hold_plain_files_only(store: Store, spoil: Callable[[Path], Any], rule: str) -> None:
    def build(folder: Path) -> None:
        write_payload(folder)
        spoil(folder)

    with pytest.raises(ArtifactError, match=rule):
        store.get_or_build(recipe("a"), build)
    assert store.listing() == [] and scratch(store) == []


def test_a_build_that_writes_nothing_is_refused(store: Store) -> None:
    with pytest.raises(ArtifactError, match="wrote no file"):
        store.get_or_build(recipe("a"), lambda folder: (folder / "empty").mkdir())
    assert store.listing() == [] and scratch(store) == []


def edit_manifest(**changes: Any) -> Callable[[Entry], None]:
    def edit(entry: Entry) -> None:
        path = entry.folder / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def replace_manifest(text: str) -> Callable[[Entry], None]:
    def replace(entry: Entry) -> None:
        (entry.folder / "manifest.json").write_text(text)

    return replace


def replace_file(data: bytes) -> Callable[[Entry], None]:
    def replace(entry: Entry) -> None:
        entry.path("config.json").chmod(0o644)
        entry.path("config.json").write_bytes(data)

    return replace


def link_manifest(entry: Entry) -> None:
    moved = entry.folder.parent.parent / "moved.json"
    (entry.folder / "manifest.json").rename(moved)
    (entry.folder / "manifest.json").symlink_to(moved)


def pipe_manifest(entry: Entry) -> None:
    (entry.folder / "manifest.json").unlink()
    os.mkfifo(entry.folder / "manifest.json")


def link_file(entry: Entry) -> None:
    entry.path("config.json").unlink()
    entry.path("config.json").symlink_to("/dev/null")


RECORD = {"size_bytes": 0, "sha256": "0" * 64}
DAMAGE: dict[str, tuple[Callable[[Entry], None], str]] = {
    "truncated": (replace_file(b"{"), "has 1 bytes, not 2"),
    "missing": (lambda entry: entry.path("config.json").unlink(), "'config.json' is missing"),
    "extra": (lambda entry: (entry.folder / "rank0" / "x").touch(), "'rank0/x' is extra"),
    "link": (link_file, "not a plain file"),
    "no manifest": (lambda entry: (entry.folder / "manifest.json").unlink(), "has no manifest"),
    "manifest pipe": (pipe_manifest, "not a plain file"),
    "manifest link": (link_manifest, "is a link"),
    "not JSON": (replace_manifest("{"), "not a JSON object"),
    "not an object": (replace_manifest("[]"), "not a JSON object"),
    "deep": (replace_manifest("[" * 100_000), "not a JSON object"),
    "huge": (replace_manifest(" " * (17 << 20)), "at most"),
    "foreign": (replace_manifest('{"model_type": "llama"}'), "foreign"),
    "old schema": (edit_manifest(schema=0), "schema 0"),
    "boolean schema": (edit_manifest(schema=True), "schema True"),
    "unknown field": (edit_manifest(colour="red"), "colour"),
    "other inputs": (edit_manifest(inputs={"name": "b"}), "belongs to another entry"),
    "other kind": (edit_manifest(kind="plan"), "belongs to another entry"),
    "other key": (edit_manifest(key="0" * 64), "belongs to another entry"),
    "bad kind": (edit_manifest(kind=7), "kind=7"),
    "list of files": (edit_manifest(files=[]), "must be objects"),
    "traversal": (edit_manifest(files={"../../config.json": RECORD}), "relative path"),
    "absolute": (edit_manifest(files={"/etc/passwd": RECORD}), "relative path"),
    "bad record": (edit_manifest(files={"config.json": {"size_bytes": True}}), "record of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_entries_are_refused_in_one_line(store: Store, damage: str) -> None:
    inflict, rule = DAMAGE[damage]
    entry, sound = add(store, "a"), add(store, "sound")
    inflict(entry)
    for use in (store.find, lambda key: store.open(key).__enter__(), store.pin):
        with pytest.raises(ArtifactError) as refusal:
            use(entry.key)
        assert rule in str(refusal.value) and "\n" not in str(refusal.value)
        assert str(entry.folder) in str(refusal.value) and "build it again" in str(refusal.value)
    assert store.verify(entry.key)[entry.key] and store.verify()[sound.key] == []
    assert [bool(item.problem) for item in store.listing()].count(True) == 1
    assert store.remove(entry.key) and add(store, "a") and store.verify(entry.key)[entry.key] == []


def test_a_changed_byte_is_refused_when_first_opened(store: Store) -> None:
    entry = add(store, "a")
    replace_file(b"[]")(entry)
    fresh = Store(store.root)
    assert fresh.find(entry.key), "same size: only the hash can tell"
    with pytest.raises(ArtifactError, match="does not have its sha256"):
        fresh.find(entry.key, verify=True)
    with pytest.raises(ArtifactError, match="does not have its sha256"), fresh.open(entry.key):
        raise AssertionError("opened a changed file")
    assert store.verify()[entry.key] == ["'config.json' does not have its sha256 44136fa355b3"]


def test_strangers_on_the_shelf_are_reported_and_left(store: Store) -> None:
    add(store, "a")
    (store.root / "entries" / "notes.txt").touch()
    assert store.verify()["notes.txt"] and store.verify("0" * 64) == {"0" * 64: ["is not in the store"]}
    assert store.prune(0).kept_bytes == 0 and (store.root / "entries" / "notes.txt").exists()
