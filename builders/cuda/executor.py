"""A fused program on a device: launches where there are kernels, PyTorch's operators elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from builders.cuda.example import ANY
from builders.cuda.launch import Launch
from builders.cuda.repeat import Again, Done, carry_out, repeated
from builders.cuda.site import Site, sites_of
from builders.cuda.table import ATTENDING, KERNELS
from builders.fuse.graph import is_value
from builders.fuse.reference import fused_operators
from builders.kernels.call import Call, Config, Repeater, Runner
from builders.live import last_uses
from builders.program import Operators, Program, decoded, plain_operators


@dataclass
class Context:
    """What all executors of a rank share; the engine sets it before every step."""

    runner: Runner
    launch: Launch
    repeater: Repeater | None = None
    """Where launches can be repeated."""


OWNED = frozenset({"x"})
"""Inputs that a program may write over: hidden states, which whoever made them does not read again."""

Choices = Mapping[str, Config]
"""The configuration that was chosen, by `Site.key`."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One instruction, made ready."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: str
    configs: Mapping[int, Config]
    """By the largest number of rows that each serves; empty for PyTorch's own operators."""
    ends: tuple[str, ...]
    """Values that nothing reads afterwards."""
    spent: frozenset[int]
    """Places of arguments whose memory nothing needs afterwards."""


class Executor:
    """Runs one program; `bound` in its call holds inputs, weights and constants by name."""

    def __init__(self, program: Program, choices: Choices, context: Context) -> None:
        self._outputs, self._context = program.outputs, context
        self._operators: Operators = {**plain_operators(), **fused_operators()}
        self._steps = prepared(program, choices)

    def __call__(self, bound: Mapping[str, Any]) -> list[Tensor]:
        values, recorded = dict(bound), self._context.launch.recorded
        if recorded is None:
            for step in self._steps:
                self._run(step, values)
        elif self in recorded:
            for again in recorded[self]:
                again(values)
        else:
            recorded[self] = [self._recorded(step, values) for step in self._steps]
        return [values[name] for name in self._outputs]

    def _run(self, step: Prepared, values: dict[str, Any]) -> Done | None:
        """Carry out an instruction; says how, where kernels did it."""
        args = [decoded(arg, values) for arg in step.args]
        config, done = self._config(step, args), None
        if config is None:
            kwargs = {name: decoded(arg, values) for name, arg in step.kwargs.items()}
            values[step.out] = self._operators[step.op](*args, **kwargs)
        else:
            done = self._launched(step, config, args)
            values[step.out] = done.out
        for name in step.ends:
            del values[name]
        return done

    def _config(self, step: Prepared, args: Sequence[Any]) -> Config | None:
        """The kernel for this many rows; None where there is none and PyTorch has to do it."""
        if not step.configs or not KERNELS[step.op].takes(args, self._context.launch):
            return None
        if self._context.launch.tiles is not None and step.op in ATTENDING:
            return step.configs.get(ANY)
        return _config_for(step, args[0].shape[0])

    def _launched(self, step: Prepared, config: Config, args: Sequence[Any]) -> Done:
        kernel, launch = KERNELS[step.op], self._context.launch
        out = kernel.room(config, args, step.spent)
        work = [*kernel.work(config, args, out, launch), *self._alone(step, args, out)]
        carry_out(work, self._context.runner)
        return Done(given=_given(step, args), name=step.out, out=out, work=work, lasting=launch.lasting())

    def _alone(self, step: Prepared, args: Sequence[Any], out: Tensor) -> list[Call]:
        """Beside prompts: tokens that are alone in their sequences, attended as in a decoding step."""
        launch = self._context.launch
        count = launch.tiles.alone if launch.tiles else 0
        if step.op not in ATTENDING or not count:
            return []
        config = _config_for(step, count)
        assert config is not None, "no kernel for a decoding step"
        return ATTENDING[step.op].alone(count, config, args, out, launch)

    def _recorded(self, step: Prepared, values: dict[str, Any]) -> Again:
        """Carry it out, and tell how to do so with the values of another layer."""
        repeater, done = self._context.repeater, self._run(step, values)
        if done is not None and repeater is not None:
            return repeated(done, step.ends, repeater)
        return lambda others: self._run(step, others)


def _config_for(step: Prepared, rows: int) -> Config | None:
    """The smallest that serves so many rows."""
    assert step.op not in ATTENDING or rows <= max(step.configs), "more rows than the limits have"
    fitting = [size for size in step.configs if size >= rows]
    return step.configs[min(fitting)] if fitting else step.configs.get(ANY)


def _given(step: Prepared, args: Sequence[Any]) -> dict[str, Tensor]:
    named = zip(step.args, args, strict=True)
    return {arg["value"]: x for arg, x in named if is_value(arg) and isinstance(x, Tensor)}


def prepared(program: Program, choices: Choices) -> list[Prepared]:
    """A program's instructions with the kernels that were chosen for them."""
    sites = sites_of(program, KERNELS)
    keep = {*program.outputs, *program.inputs, *program.weights, *program.constants}
    return [
        Prepared(
            op=step.op,
            args=step.args,
            kwargs=step.kwargs,
            out=step.out,
            configs=_configs(sites[step.out], choices) if step.out in sites else {},
            ends=tuple(name for name in ends if name not in keep),
            spent=frozenset(
                place for place, arg in enumerate(step.args) if is_value(arg) and arg["value"] in ends
            ),
        )
        for step, ends in zip(program.instructions, last_uses(program, owned=OWNED), strict=True)
    ]


def _configs(site: Site, choices: Choices) -> dict[int, Config]:
    sizes = (ANY, *(1 << power for power in range(20)))
    keys = {size: site.key(size) for size in sizes}
    return {size: choices[key] for size, key in keys.items() if key in choices}
