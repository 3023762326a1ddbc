"""What a replica's start takes before its own code runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ray
from ray.util.placement_group import placement_group_table


def phases() -> dict[str, float]:
    """In seconds: until Ray had room, and what this process then needed until its replica could begin."""
    found = {"placed": _placed_s()}
    if sys.platform == "linux":
        found["started"] = _started_s()
    return found


def _placed_s() -> float:
    """New nodes included."""
    table = placement_group_table(ray.util.get_current_placement_group())
    return float(table["stats"]["end_to_end_creation_latency_ms"]) / 1e3


def _started_s() -> float:
    """Python, Ray and what it imports."""
    since_boot = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot / os.sysconf("SC_CLK_TCK")
