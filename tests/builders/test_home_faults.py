"""A shared home that is damaged, whose storage fails, and whose publishers are killed."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.errors import ArtifactError
from builders.store import FileRecord, Home, Manifest, Store
from builders.store.attempts import Attempt
from tests.builders.entries import never_build, recipe, scratch, write_payload
from tests.builders.homes import at, build, disturbed, machine, new_home, objects

REPOSITORY = Path(__file__).parents[2]
KEY = recipe("a").key


def write_small(folder: Path) -> None:
    (folder / "rank0").mkdir()
    (folder / "rank0" / "program.bin").write_bytes(b"instructions")
    (folder / "config.json").write_text("{}")
    (folder / "empty").touch()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("small")
    home = new_home("memory", folder)
    machine(home, folder / "one").get_or_build(recipe("a"), write_small)
    return home


def refusal(home: Home, folder: Path) -> str:
    """How a machine refuses the entry; it has nothing of it then."""
    store = machine(home, folder)
    with pytest.raises(ArtifactError) as refused:
        store.get_or_build(recipe("a"), never_build)
    assert store.listing() == [] and scratch(store) == [] and "\n" not in str(refused.value)
    return str(refused.value)


def test_any_changed_byte_is_refused(small: Home, tmp_path: Path) -> None:
    bytes_changed = 0
    for name in objects(small, "files/"):
        data = small.objects.read(name)
        for place in range(len(data)):
            small.objects.write(name, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert "does not have its sha256" in refusal(small, tmp_path)
            bytes_changed += 1
        small.objects.write(name, data)
    assert bytes_changed > 500 and small.verify() == {KEY: []}


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda data: data[:-1], "bytes, not"),
        (lambda data: data + b"x", "bytes, not"),
        (lambda _data: b"", "bytes, not"),
        (None, "is missing"),
    ],
    ids=["cut", "longer", "emptied", "deleted"],
)
def test_lengths_that_are_wrong_are_refused(
    small: Home, tmp_path: Path, damage: Callable[[bytes], bytes] | None, rule: str
) -> None:
    (attempt,) = small.attempts(KEY)
    for name in objects(small, "files/"):
        data = small.objects.read(name)
        changed = data if damage is None else damage(data)
        if damage is None:
            small.objects.delete(name)
        elif changed != data:
            small.objects.write(name, changed)
        else:
            continue
        said = refusal(small, tmp_path)
        is_manifest = name.endswith(attempt.digest)
        assert is_manifest or rule in said, said
        assert said.startswith(f"{small.url}/entries/{KEY}: ") and "build it again" in said
        assert small.verify()[KEY] and [item.problem for item in small.listing()] != [""]
        small.objects.write(name, data)
    assert small.verify() == {KEY: []}


def test_what_does_not_belong_is_reported_and_left(small: Home) -> None:
    (attempt,) = small.attempts(KEY)
    strangers = [attempt.object("0" * 64), "entries/notes.txt"]
    for name in strangers:
        small.objects.write(name, b"?")
    found = small.verify()
    assert found["notes.txt"] == ["is not an entry"] and "is extra" in found[KEY][0]
    assert small.prune(min_age_s=0).evicted == () and set(strangers) <= objects(small)
    for name in strangers:
        small.objects.delete(name)
    assert small.verify("0" * 64) == {"0" * 64: ["is not in the store"]}


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["manifest.json"], "has a file 'manifest.json' of its own"),
        (["a", "a/b"], "its files cannot be written"),
        (["x" * 300], "its files cannot be written"),
        (["../escape"], "relative path"),
        (["/tmp/escape"], "relative path"),
    ],
)
def test_manifests_of_strangers_write_nothing(names: list[str], rule: str, tmp_path: Path) -> None:
    """The hashes are all as they should be: whoever may write to the home made it so."""
    home = new_home("memory", tmp_path)
    empty = hashlib.sha256(b"").hexdigest()
    files = {name: FileRecord(size_bytes=0, sha256=empty) for name in names}
    data = Manifest(recipe=recipe("a"), files=files, created="now").to_bytes()
    attempt = Attempt(KEY, "0" * 32, hashlib.sha256(data).hexdigest())
    home.objects.write(attempt.object(attempt.digest), data)
    home.objects.write(attempt.object(empty))
    home.objects.write(attempt.marker)
    assert rule in refusal(home, tmp_path / "machine")
    assert not (tmp_path / "escape").exists() and not (tmp_path / "machine/escape").exists()


def test_a_damaged_entry_that_is_deleted_is_built_again(tmp_path: Path) -> None:
    home = new_home("memory", tmp_path)
    build(machine(home, tmp_path / "one"))
    for name in objects(home, "files/"):
        home.objects.write(name, b"damaged")
    refusal(home, tmp_path / "two")
    (marker,) = objects(home, "entries/")
    home.objects.delete(marker)
    build(machine(home, tmp_path / "two"))
    assert home.verify() == {KEY: []} and home.prune(min_age_s=0).garbage_bytes


def fetch(store: Store) -> None:
    with store.open(KEY):
        pass


def prune(store: Store) -> None:
    assert store.home
    store.home.prune(0, min_age_s=0)


def fail() -> None:
    raise OSError(errno.EIO, "the network is down")


def bring(store: Store) -> None:
    store.bring([KEY, recipe("other").key])


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("act", [build, fetch, prune, bring, lambda store: store.pin(KEY)])
def test_storage_that_fails_once_loses_nothing(
    act: Callable[[Store], object], kind: str, tmp_path: Path
) -> None:
    """At its first operation, at its second, and so on until none fails; tried again, it works."""
    failures = 0
    for step in range(200):
        folder, calls = tmp_path / str(step), [0]
        home = new_home(kind, folder)
        if act is not build:
            build(machine(home, folder / "one"))
        store = machine(home, folder / "two")
        build(Store(folder / "two"), "other")

        assert store.home
        with disturbed(store.home, at(step, calls, fail)):
            try:
                act(store)
            except ArtifactError as error:
                assert "the network is down" in str(error) and "\n" not in str(error)
                failures += 1
        assert not any(home.verify().values()) and not any(store.verify().values()) and scratch(store) == []
        act(store)
        machine(home, folder / "three").get_or_build(
            recipe("a"), never_build if act is not prune else write_payload
        )
        if calls[0] <= step:
            break
    assert failures > 3 and calls[0] <= step


# Forks a child for each n, which kills itself at its n-th step: every audited call of the interpreter is one.
KILLED = """
import os, signal, sys
from pathlib import Path
from builders.keys import Recipe
from builders.store import FileRecord, Home, Manifest, Store
from builders.store.attempts import Attempt
from tests.builders.entries import recipe, write_payload
from tests.builders.test_home_faults import build, fetch, prune

base, stride = Path(sys.argv[1]), int(sys.argv[3])
act = {"build": build, "fetch": fetch, "prune": prune}[sys.argv[2]]

def kill_at(step):
    left = [step]
    def count(event, args):
        if event.startswith(("open", "os.", "fcntl.", "shutil.", "pathlib.")):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

step, status = 0, 1
while status:
    step += 1
    home = Home(f"file://{base}/{step}/home")
    home.prepare()
    if act is not build:
        build(Store(base / str(step) / "one", home=home))
    child = os.fork()
    if not child:
        store = Store(base / str(step) / "two", home=Home(home.url.whole))
        kill_at(step * stride)
        act(store)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(step)
"""


def killed(act: str, base: Path, *, stride: int) -> list[tuple[Home, Store]]:
    """A home and a cache for each step at which a process died, the last of them undisturbed."""
    command = [sys.executable, "-c", KILLED, str(base), act, str(stride)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    homes = [Home(f"file://{base}/{step}/home") for step in range(1, int(done.stdout) + 1)]
    return [(home, machine(home, base / str(step) / "two")) for step, home in enumerate(homes, start=1)]


def test_a_publisher_killed_anywhere_shows_all_or_nothing(tmp_path: Path) -> None:
    shown = []
    for home, store in killed("build", tmp_path, stride=1):
        shown.append(KEY in home.known_keys())
        assert not any(home.verify().values()) and not any(store.verify().values())
        three = machine(home, store.root.parent / "three")
        build(three)
        assert home.verify() == {KEY: []} and three.verify() == {KEY: []}
        home.prune(min_age_s=0)
        store.prune()
        assert {name.split("/")[2] for name in objects(home, "files/")} == {home.attempts(KEY)[0].number}
    assert shown == sorted(shown) and shown.count(False) > 20 and shown.count(True) > 1


def test_a_reader_killed_anywhere_has_all_or_nothing(tmp_path: Path) -> None:
    found = []
    for home, store in killed("fetch", tmp_path, stride=2):
        found.append(bool(Store(store.root).find(KEY, verify=True)))
        assert not any(store.verify().values()) and home.verify() == {KEY: []}
        assert store.find(KEY, verify=True)
        store.prune()
        assert scratch(store) == []
    assert found == sorted(found) and found.count(False) > 10


def test_a_pruner_killed_anywhere_leaves_all_or_nothing(tmp_path: Path) -> None:
    left = []
    for home, _store in killed("prune", tmp_path, stride=1):
        left.append(KEY in home.known_keys())
        assert not any(home.verify().values())
        home.prune(0, min_age_s=0)
        assert not objects(home, "files/") and not objects(home, "entries/")
    assert left == sorted(left, reverse=True) and set(left) == {True, False}
