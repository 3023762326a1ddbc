"""`rankforge keys`: what is shown, what is kept, who may write it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from builders.errors import UserError
from cluster.api_keys import id_of, read_keys
from cluster.key_options import AddKeyOptions
from cluster.keys import add, listing, remove


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", "keys", *arguments], capture_output=True, text=True
    )


def test_a_key_is_shown_once_and_never_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    shown = run("add", "--keys_file", str(path), "--name", "alice", "--requests-per-minute", "5")
    key, kept = shown.stdout.strip(), path.read_text()
    assert shown.returncode == 0 and len(key) == 63 and id_of(key) and path.stat().st_mode & 0o777 == 0o600
    assert key.rsplit("-", 1)[1] not in kept and sha256(key.encode()).hexdigest() in kept
    listed = run("list", "--keys_file", str(path), "--json").stdout
    (found,) = json.loads(listed)["keys"]
    assert (found["name"], found["requests_per_minute"], found["is_admin"]) == ("alice", 5, False)
    assert "sha256" not in listed and sha256(key.encode()).hexdigest() not in listed
    assert "alice" in run("list", "--keys_file", str(path)).stdout
    assert run("remove", "--keys_file", str(path), "alice").returncode == 0 and read_keys(path) == ()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add(AddKeyOptions(keys_file=path, name="alice"))
    for arguments, words in (
        (("add", "--keys_file", str(path), "--name", "alice"), "there is a key of this name"),
        (("add", "--keys_file", str(path), "--name", "a b"), "a name is"),
        (("add", "--keys_file", str(path), "--name", "b", "--max_concurrent", "0"), "max_concurrent"),
        (("add", "--keys_file", str(tmp_path / "no" / "k.json"), "--name", "b"), "does not exist"),
        (("remove", "--keys_file", str(path), "bob"), "no key has this name"),
        (("list", "--keys_file", str(tmp_path / "none.json")), "cannot be read"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [one["name"] for one in listing(path)] == ["alice"]


def test_of_many_that_add_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda n: add(AddKeyOptions(keys_file=path, name=f"k{n}")), range(40)))
    assert len(keys) == 40 and {one["name"] for one in listing(path)} == {f"k{n}" for n in range(40)}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys.json", "keys.json.lock"]


def test_removing_by_id(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = add(AddKeyOptions(keys_file=path, name="alice", admin=True))
    assert listing(path)[0]["is_admin"] and remove(path, id_of(key) or "") == id_of(key)


NO_FILES = [
    "", "[]", "{}", "\xff", '{"keys": [{"name": "a"}]}',
    '{"format": "rankforge-keys", "version": 2, "keys": []}',
]  # fmt: skip


@pytest.mark.parametrize("text", NO_FILES)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    with pytest.raises(UserError, match="is no file of API keys"):
        read_keys(path)


def test_a_file_that_others_may_write(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add(AddKeyOptions(keys_file=path, name="alice"))
    path.chmod(0o620)
    with pytest.raises(UserError, match="others may write it"):
        read_keys(path)


def test_two_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add(AddKeyOptions(keys_file=path, name="alice"))
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "keys": found["keys"] * 2}))
    with pytest.raises(UserError, match="two keys have one name"):
        read_keys(path)
