"""Tuning: what is decided from times, and what compiling many sources comes to."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
import torch

from builders.kernels.aot import KernelTooLarge
from builders.kernels.call import Call, Config, Source
from builders.kernels.driver import Compiled, DriverError
from builders.kernels.tune import (
    Candidate,
    Measured,
    NoCandidate,
    Rounds,
    choose,
    compile_all,
    measure,
    rounds_for,
    tune,
)


def config(size: int) -> Config:
    return Config(blocks={"SIZE": size})


def measured(size: int, seconds: float | None) -> Measured:
    return Measured(config=config(size), seconds=seconds, problem="" if seconds else "broken")


def test_the_fastest_is_chosen() -> None:
    assert choose([measured(1, 3e-6), measured(2, 2e-6), measured(3, None)]).config == config(2)


def test_of_equals_the_first_is_chosen() -> None:
    assert choose([measured(1, 2.01e-6), measured(2, 2e-6)]).config == config(1)


def test_no_candidate_says_why() -> None:
    with pytest.raises(NoCandidate, match="SIZE': 4}: broken"):
        choose([measured(4, None)])
    with pytest.raises(NoCandidate, match="none was given"):
        choose([])


class Device:
    """Launches write their config's size; sizes over 9 are wrong, those over 99 fail, times are given."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.out, self.seconds = torch.zeros(4), seconds

    def candidate(self, size: int) -> Candidate:
        call = Call(kernel="k.k", args=(), constants=(), grid=(1, 1, 1), config=config(size))
        return Candidate(config=call.config, rounds=[[call], [call]])

    def run(self, calls: Iterable[Call]) -> None:
        for call in calls:
            size = call.config.blocks["SIZE"]
            if size > 99:
                raise DriverError("CUDA driver error 701: too many resources requested for launch")
            self.out.copy_(torch.ones(4) if size <= 9 else torch.full((4,), float(size)))
            if size == 50:
                self.out[0] = float("nan")

    def timer(self, rounds: Rounds) -> float:
        return self.seconds[rounds[0][0].config.blocks["SIZE"]]


def test_wrong_and_failed_candidates_are_left_out() -> None:
    device = Device({2: 3.0, 1: 2.0})
    candidates = [device.candidate(size) for size in (100, 2, 10, 50, 1)]
    results = measure(candidates, device.out, device.run, device.timer, tolerance=0.02)
    assert [one.seconds for one in results] == [None, 3.0, None, None, 2.0]
    assert [one.problem for one in results] == [
        "CUDA driver error 701: too many resources requested for launch",
        "",
        "differs from what is expected by 9, more than 0.02",
        "results that are not finite",
        "",
    ]
    assert tune(candidates, device.out, device.run, device.timer).config == config(1)


def test_the_first_candidate_can_be_wrong() -> None:
    device = Device({1: 1.0})
    candidates = [device.candidate(10), device.candidate(1)]
    results = measure(
        candidates, device.out, device.run, device.timer, tolerance=0.02, expected=torch.ones(4)
    )
    assert choose(results).config == config(1)


def test_a_candidate_that_writes_nothing_is_wrong() -> None:
    device = Device({1: 1.0})
    (result,) = measure([device.candidate(1)], device.out, lambda _: None, device.timer, tolerance=0.02)
    assert result.problem == "results that are not finite"


def source(name: str) -> Source:
    return Source(kernel=name, kinds=(), constants=(), warps=1, stages=1, overlap=False)


def compiler(source: Source, capability: int) -> Compiled:
    """Stands for one that does not fit, one that raises, one that kills its process."""
    if source.kernel == "large":
        raise KernelTooLarge("needs too much")
    if source.kernel == "wrong":
        raise RuntimeError("at line 3:\n  x = 1")
    if source.kernel == "crash":
        os._exit(1)
    return Compiled(
        source=source, capability=capability, code=b"", name=source.kernel, shared_bytes=0, scratch_bytes=0
    )


def test_compiling_many() -> None:
    names = ["a", "large", "b", "a", "wrong"]
    result = compile_all(map(source, names), 90, 2, compiler)
    assert [kernel.name for kernel in result.kernels] == ["a", "b"]
    assert result.problems == {
        source("large"): "KernelTooLarge: needs too much",
        source("wrong"): "RuntimeError: at line 3:",
    }


def test_a_crash_of_the_compiler_costs_one_source() -> None:
    result = compile_all(map(source, ["crash", "a"]), 90, 1, compiler)
    assert [kernel.name for kernel in result.kernels] == ["a"]
    assert result.problems == {source("crash"): "the compiler crashed"}


def test_weights_come_from_memory() -> None:
    assert rounds_for(200 << 20, 50 << 20) == 2
    assert rounds_for(1 << 20, 50 << 20) == 150
