"""`rankforge demo` as users start it: a conversation, a line that works, an end that leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent
MARK = "DEMO_TEST_MARK"
TOLD = re.compile(r"(convert|build) \S+: [0-9]+%|(api|pip): [a-z]|draining (api|pip)$")
"""Lines that are the project's own: none of a library is among them."""


@pytest.fixture
def mark() -> Iterator[str]:
    """In the environment of all that a demo starts, which is ended here if it does not end by itself."""
    name = f"{MARK}={uuid.uuid4()}"
    yield name
    for process in marked(name):
        os.kill(process, signal.SIGKILL)


def started(mark: str, *args: object) -> subprocess.Popen[str]:
    """In a process group of its own, as shells start commands."""
    command = [sys.executable, "-u", "-m", "cluster", "demo", *map(str, args)]
    env = {**os.environ, MARK: mark.partition("=")[2]}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def marked(mark: str) -> list[int]:
    """Processes that live and have it in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # gone, or another user's
            continue
        if mark.encode() in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_once_it_ends_after_the_conversation(mark: str, tmp_path: Path) -> None:
    process = started(mark, "--once", "--output_dir", tmp_path)
    printed, complained = process.communicate(timeout=240)
    assert process.returncode == 0, complained
    said = [line[6:] for line in printed.splitlines() if line.startswith(" pip  ")]
    assert "Nice to meet you, Mara!" in said and "Anna lives in Mill Street." in said
    assert "Your name is Mara." in said and said[-1].startswith("Sorry, I do not know that.")
    assert not [line for line in complained.splitlines() if not TOLD.match(line)]
    assert "tp 2" in printed and (tmp_path / "shards" / "rank1.safetensors").is_file()
    assert gone(mark)


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "ranks"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_stopped_it_leaves_no_process(sent: signal.Signals, ranks: int, mark: str) -> None:
    """Ctrl-C goes to everything that runs in the terminal, SIGTERM to the command alone."""
    process = started(mark, "--tp_size", ranks)
    assert process.stdout
    lines = []
    while "until stopped" not in (line := process.stdout.readline()):
        assert line, process.communicate()
        lines.append(line)
    assert "Anna lives in Mill Street." in asked(lines[-1])
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 128 + sent
    assert "Traceback" not in complained
    assert gone(mark)


def asked(line: str) -> str:
    """What the line for a shell answers; where there is no curl, what it says is sent without."""
    command = shlex.split(line)
    if subprocess.run(["which", "curl"], capture_output=True).returncode == 0:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
        return str(json.loads(done.stdout)["choices"][0]["message"]["content"])
    curl, url, _, header, _, body = command
    answer = httpx.post(url, content=body, headers=dict([header.split(": ")]))
    assert curl == "curl" and answer.status_code == 200
    return str(answer.json()["choices"][0]["message"]["content"])


def gone(mark: str) -> bool:
    """Ray's own processes take a moment after the one that started them."""
    deadline = time.monotonic() + 60
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not marked(mark)
