"""The whole of `benchmarks/runtime.py` on a tiny model: nothing is left out, whatever the numbers are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TINY = ["--shape", "tiny", "--target", "cpu", "--passes", "2"]


def run(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What it prints, and its JSON."""
    file = folder / "found.json"
    command = [sys.executable, "-m", "benchmarks.runtime", *TINY, *arguments]
    command += ["--json", str(file), "--folder", str(folder / "engines")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, timeout=250, check=True
    )
    return done.stdout, json.loads(file.read_text())


def rows(page: str, who: str) -> list[list[str]]:
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    return [cells for cells in found if len(cells) > 1 and cells[1] == who]


def test_every_cell_is_filled(tmp_path: Path) -> None:
    page, found = run(tmp_path, "--floor_tokens", "8")
    assert page.startswith("- Command: `python -m benchmarks.runtime --shape tiny")
    for who in ("rankforge", "Transformers generate"):
        assert [cells[0] for cells in rows(page, who)] == ["1, 8, 8", "8, 8, 8"]
        assert all(
            cell and float(cell.rstrip(" ms%").replace(",", "")) >= 0
            for cells in rows(page, who)
            for cell in cells[2:]
        )
    assert [len(one["passes"]) for one in found["measured"]] == [2, 2]
    assert not found["problems"]


@pytest.mark.slow
def test_layouts_of_several_ranks_are_set_beside_one(tmp_path: Path) -> None:
    page, _ = run(tmp_path, "--tp", "1,2", "--floor_tokens", "0")
    assert [len(rows(page, who)) for who in ("rankforge", "rankforge, tp 2")] == [2, 2]
    assert "| layout | decode step at batch 1 | times as fast | goal |" in page
    assert "FAILED" not in page


@pytest.mark.slow
def test_a_start_is_told_phase_by_phase(tmp_path: Path) -> None:
    page, found = run(tmp_path, "--start", "--starts", "2")
    phases = found["starts"][0]["phases"]
    assert [list(one) for one in phases] == [
        ["Python", "imports", "device", "load", "capture", "first token"]
    ] * 2
    assert all(seconds >= 0 for one in phases for seconds in one.values())
    assert "| process start to first token | Python | imports |" in page
