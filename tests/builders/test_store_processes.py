"""The store among real processes, killed at every step they take."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.errors import ArtifactError
from builders.keys import Recipe
from builders.store import Store

REPOSITORY = Path(__file__).parents[2]
RECIPE = Recipe("engine", {"name": "a"})
OTHER = Recipe("engine", {"name": "other"})

# What every child process starts with.
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from builders.keys import Recipe
from builders.store import Store

RECIPE = Recipe("engine", {"name": "a"})
base = Path(sys.argv[1])

def build(folder):
    (folder / "rank0").mkdir()
    (folder / "rank0" / "program.bin").write_bytes(b"built" * 1000)
    (folder / "config.json").write_text("{}")
"""

# Forks a child for each n, which kills itself at its n-th step: every audited call of the
# interpreter (open, mkdir, rename, chmod, flock, unlink, ...) is one. Ends when a child survives.
KILL_EVERYWHERE = """
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
    store = Store(base / str(step))
    prepare(store)
    child = os.fork()
    if not child:
        kill_at(step)
        act(store)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
print(step)
"""


def build(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def never_build(folder: Path) -> None:
    raise AssertionError("built although the entry was there")


def start(script: str, base: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(base)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts children that do not outlive the test."""
    children: list[subprocess.Popen[str]] = []

    def spawn_child(script: str) -> subprocess.Popen[str]:
        children.append(start(script, tmp_path))
        return children[-1]

    yield spawn_child
    for child in children:
        child.kill()
        child.communicate()


def kill_everywhere(prepare: str, act: str, base: Path) -> list[Store]:
    """One store for each step at which a process died, the last of them undisturbed."""
    script = f"def prepare(store):\n    {prepare}\ndef act(store):\n    {act}\n" + KILL_EVERYWHERE
    steps = int(finish(start(script, base)))
    return [Store(base / str(step)) for step in range(1, steps + 1)]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def leftovers(store: Store) -> list[Path]:
    return list((store.root / "scratch").glob("*"))


def test_a_build_killed_anywhere_is_not_there_or_whole(tmp_path: Path) -> None:
    prepare = 'store.get_or_build(Recipe("engine", {"name": "other"}), build)'
    stores = kill_everywhere(prepare, "store.get_or_build(RECIPE, build)", tmp_path)
    found = [store.find(RECIPE.key, verify=True) is not None for store in stores]
    # Absent until the rename, whole from there on, and enough steps to mean something.
    assert found == sorted(found) and found.count(False) > 20 and found.count(True) > 3
    for store, there in zip(stores, found, strict=True):
        store.get_or_build(RECIPE, never_build if there else build)
        store.prune()
        assert leftovers(store) == [] and store.verify() == {RECIPE.key: [], OTHER.key: []}


def test_an_eviction_killed_anywhere_leaves_all_or_nothing(tmp_path: Path) -> None:
    prepare = "store.get_or_build(RECIPE, build)"
    stores = kill_everywhere(prepare, "store.prune(0)", tmp_path)
    found = [store.find(RECIPE.key, verify=True) is not None for store in stores]
    assert found == sorted(found, reverse=True) and {True, False} <= set(found)
    for store in stores:
        store.prune()
        assert leftovers(store) == [] and not any(store.verify().values())
        assert store.get_or_build(RECIPE, build)


def test_a_blob_write_killed_anywhere_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    prepare = 'store.write_blob("timing", b"old" * 9999)'
    stores = kill_everywhere(prepare, 'store.write_blob("timing", b"new" * 9999)', tmp_path)
    blobs = [store.read_blob("timing") for store in stores]
    assert set(blobs) == {b"old" * 9999, b"new" * 9999}
    for store in stores:
        store.prune()
        assert leftovers(store) == []


def test_processes_build_once(tmp_path: Path, spawn: Callable[[str], Any]) -> None:
    script = """
def counted(folder):
    with (base / "count").open("a") as file:
        file.write("x")
    time.sleep(0.3)
    build(folder)

(base / f"ready{os.getpid()}").touch()
while not (base / "go").exists():
    time.sleep(0.005)
print(Store(base / "store").get_or_build(RECIPE, counted).manifest.created)
"""
    children = [spawn(script) for _ in range(4)]
    for child in children:
        wait_for(tmp_path / f"ready{child.pid}")
    (tmp_path / "go").touch()
    assert len({finish(child) for child in children}) == 1
    assert (tmp_path / "count").read_text() == "x"


HANG = """
def hang(folder):
    build(folder)
    (base / "building").touch()
    time.sleep(60)

Store(base / "store").get_or_build(RECIPE, hang)
"""


def test_a_waiter_takes_over_from_a_killed_builder(tmp_path: Path, spawn: Callable[[str], Any]) -> None:
    builder = spawn(HANG)
    wait_for(tmp_path / "building")
    waiter = spawn(
        """
def announce(line):
    (base / "announced").write_text(line)

print(Store(base / "store", announce=announce).get_or_build(RECIPE, build).key)
"""
    )
    wait_for(tmp_path / "announced")
    assert f"waiting for process {builder.pid} on " in (tmp_path / "announced").read_text()
    builder.kill()
    assert finish(waiter).strip() == RECIPE.key
    store = Store(tmp_path / "store")
    assert leftovers(store) == [] and store.verify() == {RECIPE.key: []}


def test_only_drafts_of_dead_builders_are_swept(tmp_path: Path, spawn: Callable[[str], Any]) -> None:
    builder, store = spawn(HANG), Store(tmp_path / "store")
    wait_for(tmp_path / "building")
    builder.send_signal(signal.SIGSTOP)
    before = leftovers(store)
    store.get_or_build(OTHER, build)
    assert set(before) <= set(leftovers(store)) and len(before) == 2, "a stopped process is alive"
    with pytest.raises(ArtifactError, match=f"held by process {builder.pid} .* after 0.2 s"):
        store.get_or_build(RECIPE, build, wait_s=0.2)
    builder.kill()
    builder.wait()
    store.get_or_build(Recipe("engine", {"name": "third"}), build)
    assert leftovers(store) == []


def test_an_entry_open_in_another_process_stays(tmp_path: Path, spawn: Callable[[str], Any]) -> None:
    store = Store(tmp_path / "store")
    store.get_or_build(RECIPE, build)
    reader = spawn(
        """
with Store(base / "store").open(RECIPE.key):
    (base / "open").touch()
    time.sleep(60)
"""
    )
    wait_for(tmp_path / "open")
    assert store.prune(0).evicted == () and not store.remove(RECIPE.key)
    assert store.find(RECIPE.key, verify=True)
    reader.kill()
    reader.wait()
    assert store.prune(0).evicted == (RECIPE.key,)
