"""The machine that something is measured on, in words for a record of results."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "triton", "transformers", "ray", "cupy-cuda13x")


def described(module: str) -> list[str]:
    """The exact command, devices and driver, processor, and the libraries that matter."""
    libraries = [f"{name} {found}" for name in LIBRARIES if (found := _version(name))]
    python = f"Python {platform.python_version()}"
    return [
        f"Command: `{shlex.join(['python', '-m', module, *sys.argv[1:]])}`",
        f"Devices: {devices()}",
        f"Processor: {_processor()}, {len(os.sched_getaffinity(0))} cores",
        f"Software: {', '.join([python, *libraries])}",
    ]


def devices() -> str:
    """As the driver names them, and its version."""
    if shutil.which("nvidia-smi") is None:
        return "none"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    if not lines:
        return "none"
    name, _, driver = lines[0].partition(", ")
    return f"{len(lines)} of {name}, driver {driver}"


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
