"""The command line of `benchmarks/runtime.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.runtime_cases import SHAPES, Case, Shape, batches, floor_cases, long_cases
from benchmarks.runtime_peers import SHAPE as PEERS_SHAPE
from builders.limits import Limits
from builders.mapping import Mapping as Layout

MAX_NUM_TOKENS = 8192
"""Of a step of every engine that is measured."""
LONG_TOKENS_OUT = 64
"""Of each text with a long context: its steps are what is asked for."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    shape_name: str
    layers: int | None
    """In place of the shape's own."""
    layouts: tuple[Layout, ...]
    target: str
    cases: tuple[Case, ...]
    floor: tuple[Case, ...]
    """Of Transformers' `generate`."""
    passes: int
    starts: int
    """Of processes, in place of the cases; none are measured at 0."""
    max_batch_size: int
    seconds: float
    """For everything: what does not end in time is ended, and what there is then is printed."""
    folder: Path | None
    json: Path | None

    @property
    def shape(self) -> Shape:
        shape = SHAPES[self.shape_name]
        if self.layers is None:
            return shape
        return replace(shape, config={**shape.config, "num_hidden_layers": self.layers})

    @property
    def on_record(self) -> bool:
        """Whether peers and goals are of this shape and kind of device."""
        return (self.shape_name, self.layers, self.target) == (PEERS_SHAPE, None, "cuda")

    @property
    def limits(self) -> Limits:
        """Of one engine that can do every case."""
        return Limits(
            max_batch_size=max([self.max_batch_size, *(case.batch for case in self.cases)]),
            max_input_len=max(case.tokens_in for case in self.cases),
            max_seq_len=max(case.tokens_in + case.tokens_out for case in self.cases),
            max_num_tokens=MAX_NUM_TOKENS,
        )


def parsed(doc: str, arguments: Sequence[str] | None = None) -> Options:
    """From a command line, this process's unless told."""
    found = _parser(doc).parse_args(arguments)
    cases = _cases(found)
    layouts = tuple(Layout(tp_size=tp, pp_size=found.pp, ep_size=found.ep) for tp in found.tp)
    alone = any(layout.world_size == 1 for layout in layouts) and found.floor_tokens > 0
    return Options(
        shape_name=found.shape,
        layers=found.layers,
        layouts=layouts,
        target=found.target or ("cuda" if torch.cuda.is_available() else "cpu"),
        cases=cases,
        floor=floor_cases(cases, found.floor_tokens) if alone and not found.context else (),
        passes=found.passes,
        starts=found.starts if found.start else 0,
        max_batch_size=found.max_batch_size,
        seconds=found.seconds,
        folder=found.folder,
        json=found.json,
    )


def _parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default="llama-8b")
    add("--layers", type=int, help="fewer than the shape has, to try things")
    add("--target", choices=("cpu", "cuda"), help="the device that is at hand by default")
    add("--tp", type=_numbers, default=[1], help="tensor parallel ranks; several, such as 1,2,4, in turn")
    add("--pp", type=int, default=1, help="pipeline stages")
    add("--ep", type=int, default=1, help="expert parallel ranks among the tensor parallel ones")
    add("--cases", type=case_of, nargs="+", help="batch,in,out of each, in place of the shape's own")
    add("--batch", type=_numbers, help="batches, such as 1,8,64, in place of the shape's cases")
    add("--tokens_in", type=int, default=128, help="of each prompt, with --batch")
    add("--tokens_out", type=int, default=128, help="of each text, with --batch")
    add("--context", type=int, help="decode with so many tokens in the cache, at batch 1 and 8, instead")
    add("--start", action="store_true", help="from process start to first token, instead")
    add("--starts", type=int, default=3, help="how often")
    add("--passes", type=int, default=3, help="over every case, after one that warms up")
    add("--floor_tokens", type=int, default=32, help="of Transformers' generate; 0 leaves it out")
    add("--max_batch_size", type=int, default=256, help="of the engines")
    add("--seconds", type=float, default=3600.0, help="for everything; what is known by then is printed")
    add("--folder", type=Path, help="where engines are kept and found again; by default they are removed")
    add("--json", type=Path, help="a file for all that was found")
    return parser


def _cases(found: argparse.Namespace) -> tuple[Case, ...]:
    if found.context:
        return long_cases(found.context, LONG_TOKENS_OUT)
    if found.cases:
        return tuple(found.cases)
    if found.batch:
        return batches(found.tokens_in, found.tokens_out, *found.batch)
    return SHAPES[found.shape].cases


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def case_of(text: str) -> Case:
    batch, tokens_in, tokens_out = _numbers(text)
    return Case(batch=batch, tokens_in=tokens_in, tokens_out=tokens_out)
