"""A home that machines share: publish, find, refuse, pin, prune."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from builders.errors import ArtifactError
from builders.keys import Recipe
from builders.store import Home, Store
from tests.builders.entries import PAYLOAD, never_build, recipe, scratch, write_payload
from tests.builders.homes import at, build, disturbed, machine, memory_url, new_home, objects

KEY = recipe("a").key


@pytest.fixture(params=["file", "memory"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return new_home(request.param, tmp_path)


def test_what_one_machine_builds_another_finds(home: Home, tmp_path: Path) -> None:
    one, two = machine(home, tmp_path / "one"), machine(home, tmp_path / "two")
    assert two.find(KEY) is None and two.known_keys() == set()
    built = one.get_or_build(recipe("a"), write_payload)
    assert two.known_keys() == {KEY}
    found = two.get_or_build(recipe("a"), never_build)
    assert found.folder.is_relative_to(tmp_path / "two") and found.manifest == built.manifest
    assert found.path("rank0/program.bin").read_bytes() == PAYLOAD
    assert not found.path("config.json").stat().st_mode & 0o222
    assert two.verify() == {KEY: []} == home.verify() and scratch(two) == []
    assert Store(tmp_path / "two").find(KEY, verify=True), "without its home too"


def test_open_fetches(home: Home, tmp_path: Path) -> None:
    build(machine(home, tmp_path / "one"))
    with machine(home, tmp_path / "two").open(KEY) as entry:
        assert entry.path("config.json").read_text() == "{}"
    with pytest.raises(ArtifactError, match="build it first"), machine(home, tmp_path / "x").open("0" * 64):
        pass


def test_only_the_files_that_are_wanted_are_fetched(home: Home, tmp_path: Path) -> None:
    build(machine(home, tmp_path / "one"))
    read: list[str] = []
    two = machine(home, tmp_path / "two")
    assert two.home
    with disturbed(two.home, lambda what, path: read.append(path) if what == "cat_file" else None):
        for _ in range(2):
            with two.open_part(KEY, ["config.json"]) as entry:
                assert entry.path("config.json").read_text() == "{}"
                assert not (entry.folder / "rank0").exists()
    assert len(read) == 2, "the manifest and the file, once"
    assert not any(two.verify().values()) and len(two.listing()) == 1
    assert len(objects(home, "used/")) == 1, "a part is a use of the whole"
    with pytest.raises(ArtifactError, match=r"'rank7\.bin': not in entry"), two.open_part(KEY, ["rank7.bin"]):
        pass
    assert two.find(KEY)
    with machine(home, tmp_path / "one").open_part(KEY, ["config.json"]) as entry:
        assert entry.key == KEY, "all of it was here"


def test_big_files_are_streamed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.store.objects.CHUNK_BYTES", 1000)
    sizes = {"empty": 0, "one": 1000, "more": 1001, "many": 12_345}
    data = {name: os.urandom(size) for name, size in sizes.items()}

    def write(folder: Path) -> None:
        for name, content in data.items():
            (folder / name).write_bytes(content)

    machine(home, tmp_path / "one").get_or_build(recipe("a"), write)
    entry = machine(home, tmp_path / "two").find(KEY)
    assert entry and {name: entry.path(name).read_bytes() for name in data} == data
    assert home.verify() == {KEY: []}


def test_an_entry_of_before_is_shared_when_a_home_is_given(home: Home, tmp_path: Path) -> None:
    build(Store(tmp_path / "one"), "a")
    build(Store(tmp_path / "one"), "b")
    one = machine(home, tmp_path / "one")
    assert one.find(KEY) and home.known_keys() == set(), "a look does not upload"
    one.get_or_build(recipe("a"), never_build)
    assert home.known_keys() == {KEY}
    build(machine(home, tmp_path / "two"), "c")
    wanted = [recipe(name).key for name in "abcd"]
    assert one.bring(wanted) == set(wanted[:3]) == home.known_keys() and not any(home.verify().values())


def test_listing_says_what_a_home_holds(home: Home, tmp_path: Path) -> None:
    one = machine(home, tmp_path / "one")
    build(one, "a"), build(one, "b")
    home.pin(KEY)
    listed = {item.key: item for item in home.listing()}
    assert listed.keys() == {KEY, recipe("b").key}
    assert listed[KEY].pinned and listed[KEY].manifest and listed[KEY].size_bytes > len(PAYLOAD)
    assert abs(listed[KEY].last_used_s - time.time()) < 60 and not listed[recipe("b").key].pinned


def test_pins_and_recent_uses_outlive_a_prune(home: Home, tmp_path: Path) -> None:
    one = machine(home, tmp_path / "one")
    keys = [build(one, name) for name in "abcd"]
    one.pin(keys[1])
    assert home.prune(0).evicted == () and home.known_keys() == set(keys), "all is new"
    pruned = home.prune(0, keep=keys[2:3], min_age_s=0)
    assert set(pruned.evicted) == {keys[0], keys[3]} and home.known_keys() == {keys[1], keys[2]}
    assert pruned.freed_bytes > 2 * len(PAYLOAD) and not any(home.verify().values())
    home.unpin(keys[1])
    assert home.prune(0, min_age_s=0).kept_bytes == 0
    assert objects(home) == {"rankforge-store-home-1"}
    assert one.find(keys[1]), "a cache of its own"
    with pytest.raises(ArtifactError, match="only what is there can be pinned"):
        home.pin(keys[0])
    assert not objects(home, "pins/")


def test_the_least_recently_used_goes_first(home: Home, tmp_path: Path) -> None:
    one, order = machine(home, tmp_path / "one"), "cab"
    for name in order:
        build(one, name)
        time.sleep(0.02)
    time.sleep(0.02)
    assert machine(home, tmp_path / "two").find(recipe("c").key), "a fetch is a use"
    left = sum(item.size_bytes for item in home.listing())
    for name in "abc":
        pruned = home.prune(left - 1, min_age_s=0)
        assert pruned.evicted == (recipe(name).key,)
        left = pruned.kept_bytes
    assert left == 0


def test_a_use_is_told_once_and_not_again_soon(home: Home, tmp_path: Path) -> None:
    build(machine(home, tmp_path / "one"))
    for folder in ("one", "two"):
        machine(home, tmp_path / folder).find(KEY)
    written: list[str] = []
    one = machine(home, tmp_path / "one")
    assert one.home
    with disturbed(one.home, lambda what, path: written.append(path) if what == "pipe_file" else None):
        one.bring([KEY])
        one.find(KEY)
        one.find(KEY)
    assert written == []


def test_two_publishers_at_once_leave_one_entry(home: Home, tmp_path: Path) -> None:
    """The second publishes whole before each operation of the first."""
    for step in range(100):
        name = f"n{step}"
        one, two = machine(home, tmp_path / f"one{step}"), machine(home, tmp_path / f"two{step}")
        calls = [0]
        assert one.home
        with disturbed(one.home, at(step, calls, partial(build, two, name))):
            key = build(one, name)
        if calls[0] <= step:
            break
        assert len(home.attempts(key)) == 1 and home.verify(key) == {key: []}
        attempts = {found.split("/")[2] for found in objects(home, f"files/{key}/")}
        assert len(attempts) == 1, "and nothing of the other is left"
    assert step > 8


def test_unfinished_uploads_go_when_they_are_old(home: Home, tmp_path: Path) -> None:
    one = machine(home, tmp_path / "one")
    build(one)
    (marker,) = objects(home, "entries/")
    home.objects.delete(marker)
    assert home.known_keys() == set() and home.verify() == {}
    assert home.prune().garbage_bytes == 0, "its publisher may be alive"
    pruned = home.prune(min_age_s=0)
    assert pruned.garbage_bytes > len(PAYLOAD) and pruned.evicted == ()
    assert not objects(home, "files/")
    if home.url.protocol == "file":
        folders = [path.name for path in (tmp_path / "home").rglob("*") if path.is_dir()]
        assert folders == [], "no empty ones are left"
    assert build(machine(home, tmp_path / "one")) in home.known_keys()


def test_a_publisher_whose_files_a_prune_takes_tries_again(home: Home, tmp_path: Path) -> None:
    """Pruned without a minimum age before each operation: published all the same, or refused, never half."""
    for step in range(100):
        one, calls = machine(home, tmp_path / f"one{step}"), [0]

        assert one.home
        with disturbed(one.home, at(step, calls, partial(home.prune, min_age_s=0))):
            try:
                key = build(one, f"n{step}")
            except ArtifactError as error:
                assert "try again" in str(error)
                key = build(one, f"n{step}")
        assert home.verify(key) == {key: []} and len(home.attempts(key)) == 1
        if calls[0] <= step:
            break
    assert step > 8


def test_an_entry_that_is_evicted_meanwhile_is_a_clean_miss(home: Home, tmp_path: Path) -> None:
    """Before each operation of a reader."""
    outcomes = []
    for step in range(50):
        build(machine(home, tmp_path / "one"))
        two, calls = machine(home, tmp_path / f"two{step}"), [0]

        assert two.home
        with disturbed(two.home, at(step, calls, partial(home.prune, 0, min_age_s=0))):
            entry = two.find(KEY)
        assert scratch(two) == [] and not any(two.verify().values())
        assert entry is None or entry.path("rank0/program.bin").read_bytes() == PAYLOAD
        outcomes.append(entry is not None)
        if calls[0] <= step:
            break
    assert outcomes[0] is False and outcomes[-1] is True and outcomes == sorted(outcomes)


def test_a_pin_and_a_prune_at_once(home: Home, tmp_path: Path) -> None:
    """What was pinned stays, wherever the prune comes between."""
    pinned = []
    for step in range(50):
        one, calls = machine(home, tmp_path / "one"), [0]
        build(one)

        pruner = partial(Home(home.url.whole).prune, 0, min_age_s=0)
        with disturbed(home, at(step, calls, pruner)):
            try:
                home.pin(KEY)
                pinned.append(True)
            except ArtifactError as error:
                assert (
                    "only what is there" in str(error)
                    or "is missing" in str(error)
                    or "no such" in str(error)
                )
                pinned.append(False)
        assert (KEY in home.known_keys()) is pinned[-1]
        home.unpin(KEY)
        if calls[0] <= step:
            break
    assert set(pinned) == {True, False}


def test_what_is_being_pruned_is_not_published_over(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builders.store.home_publish._WAIT_S", 0.2)
    home.objects.write(f"condemned/{KEY}/{'0' * 32}", b"condemned\n")
    with pytest.raises(ArtifactError, match=r"still being pruned after 0\.2 s"):
        build(machine(home, tmp_path / "one"))
    assert home.known_keys() == set() and not objects(home, "files/")
    monkeypatch.setattr("builders.store.home_publish.DEAD_PRUNER_S", 0.0)
    build(machine(home, tmp_path / "one"))
    assert home.known_keys() == {KEY}, "what it was is dead"


def test_parts_are_kept_and_evicted_as_entries_are(home: Home, tmp_path: Path) -> None:
    build(machine(home, tmp_path / "one"))
    two = machine(home, tmp_path / "two")
    with two.open_part(KEY, ["config.json"]) as entry:
        assert entry.manifest.recipe.kind == "part" and two.prune(0).evicted == (), "in use"
    assert two.prune(0).evicted == (entry.key,) and home.known_keys() == {KEY}


def test_a_bounded_cache_makes_room(tmp_path: Path) -> None:
    home = new_home("memory", tmp_path)
    for name in "abc":
        build(machine(home, tmp_path / "one"), name)
    two = Store(tmp_path / "two", max_bytes=1, home=home)
    for name in "abc":
        assert two.find(recipe(name).key)
        assert [item.key for item in two.listing()] == [recipe(name).key]


def test_threads_fetch_once(tmp_path: Path) -> None:
    home = new_home("memory", tmp_path)
    build(machine(home, tmp_path / "one"))
    two, read = machine(home, tmp_path / "two"), []
    assert two.home
    with (
        disturbed(two.home, lambda what, path: read.append(path) if what == "cat_file" else None),
        ThreadPoolExecutor(6) as pool,
    ):
        entries = list(pool.map(lambda _: two.find(KEY), range(6)))
    assert all(entries) and len(read) == 3, "the manifest and two files"


def test_an_entry_of_another_key_is_refused(tmp_path: Path) -> None:
    """Whoever may write to the home may not have an entry taken for another."""
    home = Home(memory_url())
    home.prepare()
    build(machine(home, tmp_path / "one"))
    (attempt,), other = home.attempts(KEY), Recipe("engine", {"name": "other"}).key
    for name in objects(home, "files/"):
        home.objects.write(name.replace(KEY, other), home.objects.read(name))
    home.objects.write(attempt.marker.replace(KEY, other))
    with pytest.raises(ArtifactError, match="belongs to another entry"):
        machine(home, tmp_path / "two").find(other)
