"""Processor time and wake-ups of a program's processes, by what they are and by thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Thread:
    """One of a process."""

    part: str
    """What its process is."""
    name: str
    cpu_s: float
    wakes: int
    """How often it has gone to sleep by itself."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Between two looks, or by unit of something."""

    cpu_s: Counter[tuple[str, str]]
    """By part and thread's name."""
    wakes: Counter[tuple[str, str]]

    def less(self, other: Spent, times: float) -> Spent:
        """Without what goes on anyway; what is less than nothing stays so."""
        cpu_s, wakes = (
            Counter({key: mine[key] - theirs[key] * times for key in mine.keys() | theirs.keys()})
            for mine, theirs in ((self.cpu_s, other.cpu_s), (self.wakes, other.wakes))
        )
        return Spent(cpu_s=cpu_s, wakes=wakes)

    def by(self, count: float) -> Spent:
        """Of each of so many."""
        cpu_s, wakes = (
            Counter({key: value / count for key, value in one.items()}) for one in (self.cpu_s, self.wakes)
        )
        return Spent(cpu_s=cpu_s, wakes=wakes)

    @property
    def parts(self) -> Counter[str]:
        """Seconds of every part."""
        found: Counter[str] = Counter()
        for (part, _), value in self.cpu_s.items():
            found[part] += value
        return found


Look = Mapping[int, Thread]
"""All threads that there are, by their numbers."""


def look(root: int, parts: Mapping[str, str]) -> Look:
    """At all processes below one. `parts` are named by a mark in the command line; others are `rest`."""
    found = {}
    for pid in _below(root):
        command = _text(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
        part = next((part for mark, part in parts.items() if mark in command), "rest")
        for folder in _entries(Path(f"/proc/{pid}/task")):
            if thread := _thread(folder, part):
                found[int(folder.name)] = thread
    return found


def between(before: Look, now: Look) -> Spent:
    """Threads that have ended are not counted; they are those of a request at most."""
    cpu_s: Counter[tuple[str, str]] = Counter()
    wakes: Counter[tuple[str, str]] = Counter()
    for number, thread in now.items():
        old = before.get(number)
        key = thread.part, thread.name
        cpu_s[key] += thread.cpu_s - (old.cpu_s if old else 0)  # type: ignore[assignment]
        wakes[key] += thread.wakes - (old.wakes if old else 0)
    return Spent(cpu_s=cpu_s, wakes=wakes)


def _thread(folder: Path, part: str) -> Thread | None:
    status = dict(line.split(":", 1) for line in _text(folder / "status").splitlines())
    ran = _text(folder / "schedstat").split()
    if not status or not ran:  # it has ended
        return None
    wakes, name = int(status["voluntary_ctxt_switches"]), status["Name"].strip()
    return Thread(part=part, name=name, cpu_s=int(ran[0]) / 1e9, wakes=wakes)


def _below(root: int) -> list[int]:
    """Processes that descend from one."""
    parents: dict[int, int] = {}
    for entry in _entries(Path("/proc")):
        if stat := _text(entry / "stat"):
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, new = set[int](), {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


def _entries(folder: Path) -> Iterator[Path]:
    try:
        found = [*folder.iterdir()]
    except OSError:
        found = []
    return (entry for entry in found if entry.name.isdigit())


def _text(file: Path) -> str:
    """Nothing of what has ended."""
    try:
        return file.read_text()
    except OSError:
        return ""
