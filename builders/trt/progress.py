"""How much of a build is done, from what TensorRT tells of its nested phases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Heard = Callable[[float], None]
"""Called with how much is done, 0 to 1, from TensorRT's threads."""


@dataclass(kw_only=True)
class Phase:
    """One phase: what it is a part of, its steps, and what it is in the middle of."""

    parent: str | None
    num_steps: int
    done: int = 0
    inner: str | None = None


class Phases:
    """The phases that were begun; each is a part of one step of its parent."""

    def __init__(self) -> None:
        self._phases: dict[str, Phase] = {}
        self._root: str | None = None
        self._furthest = 0.0

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        self._phases[name] = Phase(parent=parent, num_steps=num_steps)
        if parent in self._phases:
            self._phases[parent].inner = name
        else:
            self._root = name

    def step(self, name: str, step: int) -> None:
        phase = self._phases[name]
        phase.done, phase.inner = step + 1, None

    def finish(self, name: str) -> None:
        self._phases[name].done = self._phases[name].num_steps

    def share(self) -> float:
        """Of the outermost phase; it never falls, though TensorRT may begin a phase anew."""
        self._furthest = max(self._furthest, self._share(self._root))
        return self._furthest

    def _share(self, name: str | None) -> float:
        if name is None:
            return 0.0
        phase = self._phases[name]
        if phase.done >= phase.num_steps:
            return 1.0
        return (phase.done + self._share(phase.inner)) / phase.num_steps


def new_monitor(trt: Any, heard: Heard) -> Any:
    """An IProgressMonitor that calls a function."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)
            heard(self._phases.share())

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step)
            heard(self._phases.share())
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)
            heard(self._phases.share())

    return Monitor()
