"""`rankforge demo` as users start it: a conversation, a line that works, an end that leaves nothing."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.marks import Mark, marking

TOLD = re.compile(r"(convert|build) \S+: [0-9]+%|(api|pip): [a-z]|draining (api|pip)$")
"""Lines that are the project's own: none of a library is among them."""


@pytest.fixture
def mark() -> Iterator[Mark]:
    with marking() as found:
        yield found


@pytest.mark.slow
def test_once_it_ends_after_the_conversation(mark: Mark, tmp_path: Path) -> None:
    process = mark.start("demo", "--once", "--output_dir", tmp_path)
    printed, complained = process.communicate(timeout=240)
    assert process.returncode == 0, complained
    said = [line[6:] for line in printed.splitlines() if line.startswith(" pip  ")]
    assert "Nice to meet you, Mara!" in said and "Anna lives in Mill Street." in said
    assert "Your name is Mara." in said and said[-1].startswith("Sorry, I do not know that.")
    assert not [line for line in complained.splitlines() if not TOLD.match(line)]
    assert "tp 2" in printed and (tmp_path / "shards" / "rank1.safetensors").is_file()
    assert mark.are_gone()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "ranks"), [(signal.SIGINT, 2), pytest.param(signal.SIGTERM, 1, marks=pytest.mark.long)]
)
def test_stopped_it_leaves_no_process(sent: signal.Signals, ranks: int, mark: Mark) -> None:
    """Ctrl-C goes to everything that runs in the terminal, SIGTERM to the command alone."""
    process = mark.start("demo", "--tp_size", ranks)
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
    assert mark.are_gone()


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
