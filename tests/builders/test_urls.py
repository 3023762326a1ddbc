"""URLs of homes: refused in one line before any work, and shown without secrets."""

from __future__ import annotations

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from builders.errors import ArtifactError
from builders.store import Home, StorePlace
from builders.store.urls import HomeUrl, home_url, is_url
from tests.builders.homes import disturbed, machine, memory_url

REPOSITORY = Path(__file__).parents[2]
SECRET = "ftp://me:p%40ss-word@127.0.0.1:1/store?token=abcdef"


def prepared(url: str) -> str:
    """Why it is refused."""
    with pytest.raises(ArtifactError) as refused:
        Home(url).prepare()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/store") and is_url("file:///store") and is_url("FILE:///store")
    assert not any(map(is_url, ("store", "/a/b", "./s3:/x", "C:/store", "a b://x", "://x", "")))


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("nothing://bucket/store", "unknown protocol 'nothing'"),
        ("s3://", "names no place"),
        ("memory:///", "names no place"),
        ("file://store", "a relative path"),
        ("simplecache::file:///store", "a chain of file systems"),
        ("s3://a/b::file:///store", "a chain of file systems"),
        ("memory://a\nb", "must be printable"),
        ("http://127.0.0.1:1/store", "cannot write"),
    ],
)
def test_urls_that_cannot_be_homes(url: str, rule: str) -> None:
    assert rule in prepared(url)


@pytest.mark.parametrize(("url", "extra"), [("s3://bucket/x", "s3"), ("gs://bucket/x", "gcs")])
def test_a_driver_that_is_missing_names_the_extra(url: str, extra: str) -> None:
    if importlib.util.find_spec({"s3": "s3fs", "gcs": "gcsfs"}[extra]):
        pytest.skip("its driver is installed")
    assert f"pip install 'rankforge[{extra}]'" in prepared(url)
    assert "is not installed" in prepared("dropbox://x/y")


def test_places_that_cannot_be_reached_or_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in prepared(f"file://{tmp_path}/file/store")
    assert "cannot be written" in prepared("file:///proc/store")
    assert "Connection refused" in prepared(SECRET)


def test_a_place_without_rights(tmp_path: Path) -> None:
    home = Home(memory_url())

    def deny(_what: str, _path: str) -> None:
        raise PermissionError(13, "Permission denied")

    with (
        disturbed(home, deny),
        pytest.raises(ArtifactError, match=r"Permission denied.*check your rights there"),
    ):
        home.prepare()


def test_a_place_that_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such store"):
        Home(f"file://{tmp_path}/typo").require()
    assert not (tmp_path / "typo").exists()


def test_secrets_are_not_shown() -> None:
    url, place = home_url(SECRET), StorePlace(folder=Path("x"), url=SECRET)
    assert str(url) == "ftp://127.0.0.1:1/store"
    driver = url.without_secrets(
        f"530 login of me with p@ss-word (p%40ss-word) at {SECRET} token abcdef refused"
    )
    for shown in (str(url), repr(url), repr(place), prepared(SECRET), driver):
        assert not any(secret in shown for secret in ("ss-word", "abcdef", "me:"))
    assert "refused" in driver
    assert pickle.loads(pickle.dumps(place)).url == SECRET, "a worker needs it all the same"
    assert str(HomeUrl("file:///a@b/c?d")) == "file:///a@b/c?d", "names of folders are no secrets"
    assert repr(HomeUrl("s3://a/b")) == "HomeUrl()"


def test_protocols_are_of_either_case(tmp_path: Path) -> None:
    home = Home(f"FILE://{tmp_path}/home/")
    home.prepare()
    assert (tmp_path / "home/rankforge-store-home-1").exists()
    assert machine(home, tmp_path / "cache").find("0" * 64) is None


def test_a_store_without_a_url_imports_no_file_systems() -> None:
    code = "import sys, builders.store; sys.exit('fsspec' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
