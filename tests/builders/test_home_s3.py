"""A home in S3: the real driver, against a server of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# In a process of its own: threads of driver and server outlive a test.
TRY = """
import os, sys
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from builders.errors import ArtifactError
from builders.store import Home
from tests.builders.entries import never_build, recipe, write_payload
from tests.builders.homes import machine, objects

server = ThreadedMotoServer(port=0)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:%d" % server.get_host_and_port()[1]
boto3.client("s3").create_bucket(Bucket="bucket")
home, base, big = Home("s3://bucket/some/store"), Path(sys.argv[1]), os.urandom(20 << 20)

def refused(act, rule):
    try:
        act()
    except ArtifactError as error:
        assert rule in str(error) and chr(10) not in str(error), error
    else:
        raise AssertionError("not refused")

def write(folder):
    write_payload(folder)
    (folder / "empty").touch()
    (folder / "big #1?.bin").write_bytes(big)

refused(home.require, "no such store")
home.prepare()
home.require()
built = machine(home, base / "one").get_or_build(recipe("a"), write)
two = machine(home, base / "two")
found = two.get_or_build(recipe("a"), never_build)
assert found.path("big #1?.bin").read_bytes() == big and found.manifest == built.manifest
assert home.verify() == {built.key: []} and two.bring([built.key]) == {built.key}
home.pin(built.key)
assert home.prune(0, min_age_s=0).evicted == ()
home.unpin(built.key)
(attempt,) = home.attempts(built.key)
home.objects.write(attempt.object(built.manifest.files["config.json"].sha256), b"[]")
refused(lambda: machine(home, base / "three").find(built.key), "does not have its sha256")
assert home.prune(0, min_age_s=0).evicted == (built.key,) and objects(home) == {"rankforge-store-home-1"}
refused(Home("s3://missing/x").prepare, "no such thing")
server.stop()
refused(home.prepare, "check URL and network")
"""


def test_a_home_in_s3(tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    account = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path)],
        env={**os.environ, **account, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
