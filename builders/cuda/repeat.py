"""What one layer did, ready to be done by layers that differ only in where their tensors lie.

Describing a launch (its constants, its grid, which kernel that is) costs Python ten times what it does.
In a step, layers of one program are given tensors of the same shapes: one is described, the others follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor

from builders.cuda.wide import Product, Sum, Work
from builders.kernels.call import Call, Move, Repeater, Runner

Again = Callable[[dict[str, Any]], object]
"""Does something once more with these values; a result is added to them."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """One instruction, carried out."""

    given: Mapping[str, Tensor]
    """What it read, by the name of the value."""
    name: str
    """Of its result."""
    out: Tensor
    work: Sequence[Work]
    lasting: Sequence[Tensor]
    """What work may read that layers have in common."""


@dataclass(frozen=True)
class _Room:
    """Memory for a tensor."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def like(name: str, x: Tensor) -> _Room:
        return _Room(name, tuple(x.shape), x.stride(), x.dtype, x.device)

    def __call__(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def carry_out(work: Sequence[Work], runner: Runner) -> None:
    """In order; launches that follow each other together."""
    for is_launch, some in groupby(work, lambda one: isinstance(one, Call)):
        if is_launch:
            runner(cast(Iterable[Call], some))
        else:
            for one in cast(Iterable[Product | Sum], some):
                cast(Callable[..., None], one.do)(**vars(one))


def repeated(done: Done, ends: Sequence[str], repeater: Repeater) -> Again:
    """The same with other tensors; `ends` are values that nothing reads afterwards."""
    origins = _Origins(done)
    work = [_work(one, origins, repeater) for one in done.work]
    alias = next((name for name, x in done.given.items() if x is done.out), None)
    rooms = [*([] if alias else [_Room.like(done.name, done.out)]), *origins.rooms]
    passing = [*(room.name for room in origins.rooms), *ends]

    def again(values: dict[str, Any]) -> None:
        if alias:
            values[done.name] = values[alias]
        for room in rooms:
            values[room.name] = room()
        for one in work:
            one(values)
        for name in passing:
            del values[name]

    return again


class _Origins:
    """Where the tensors of some work come from: a value, room that only the work needs, or for good."""

    def __init__(self, done: Done) -> None:
        self.rooms: list[_Room] = []
        self._known = {done.name: done.out, **done.given}
        self._found: dict[int, tuple[str, int] | None] = {}
        for name, x in self._known.items():
            self._found.setdefault(x.data_ptr(), (name, 0))
        self._lasting = done.lasting

    def __call__(self, x: Tensor) -> tuple[str, int] | None:
        """The name of a value and bytes from its first; None for what lasts."""
        address = x.data_ptr()
        if address not in self._found:
            self._found[address] = self._search(x)
        return self._found[address]

    def _search(self, x: Tensor) -> tuple[str, int] | None:
        storage, address = x.untyped_storage().data_ptr(), x.data_ptr()
        if any(storage == one.untyped_storage().data_ptr() for one in self._lasting):
            return None
        for name, known in self._known.items():
            offset = address - known.data_ptr()
            if 0 < offset < _span(known):
                return name, offset
        assert x.storage_offset() == 0, "room of its own"
        room = _Room.like(f"room {len(self.rooms)}", x)
        self.rooms.append(room)
        self._known[room.name] = x
        return room.name, 0


def _span(x: Tensor) -> int:
    """Bytes from its first to its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return (last + 1) * x.itemsize


def _work(one: Work, origins: _Origins, repeater: Repeater) -> Callable[[Mapping[str, Tensor]], None]:
    if isinstance(one, Call):
        return repeater(one, list(_moves(one, origins)))
    return _by_pytorch(one, origins)


def _moves(call: Call, origins: _Origins) -> Iterator[Move]:
    for place, arg in enumerate(call.args):
        if isinstance(arg, Tensor) and (origin := origins(arg)):
            yield Move(place, *origin)


def _by_pytorch(one: Product | Sum, origins: _Origins) -> Callable[[Mapping[str, Tensor]], None]:
    """Its tensors are values or rooms, as a whole."""
    names = dict[str, str]()
    for field in fields(one):
        if (x := getattr(one, field.name)) is not None:
            origin = origins(x)
            assert origin and origin[1] == 0, "a whole value"
            names[field.name] = origin[0]
    absent = {field.name: None for field in fields(one) if field.name not in names}
    do, given = cast(Callable[..., None], one.do), list(names.items())

    def again(values: Mapping[str, Tensor]) -> None:
        do(**absent, **{field: values[name] for field, name in given})

    return again
