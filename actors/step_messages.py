"""What crosses between the processes of a group of ranks: orders to compute, answers, signs of life."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec
import numpy
import torch
from msgspec import Struct
from torch import Tensor

from builders.ops import Step

Answer = Literal["nothing", "tokens", "logits"]
"""What is wanted back of the wanted tokens: the likeliest next ones, or all their logits."""


class StepOrder(Struct, frozen=True, array_like=True):
    """One step of every rank: a `builders.ops.Step` and its token ids, packed as four bytes a number."""

    number: int
    """Rises from step to step."""
    answer: Answer
    ids: bytes
    positions: bytes
    sequences: bytes
    lengths: bytes
    block_table: bytes
    """Row by row, one for each of the lengths."""
    wanted: bytes


class StepAnswer(Struct, frozen=True, array_like=True):
    """What the last stage's first rank gives."""

    number: int
    shape: tuple[int, ...]
    values: bytes
    """Tokens as four bytes, logits as floats."""


class Beat(Struct, frozen=True, array_like=True):
    """A sign of life."""

    secret: bytes
    """Of the group: what does not have it is not from its ranks."""
    rank: int
    ready: bool
    """Whether it has loaded its engine and takes orders."""
    done: int
    """The last step that it finished; 0 before the first."""


MessageT = TypeVar("MessageT", StepOrder, StepAnswer, Beat)

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type, Any] = {kind: msgspec.msgpack.Decoder(kind) for kind in (StepOrder, StepAnswer, Beat)}


def encode(message: StepOrder | StepAnswer | Beat) -> bytes:
    """As it travels."""
    return _ENCODER.encode(message)


def decode(kind: type[MessageT], data: bytes) -> MessageT:
    """The message, checked against its kind."""
    return _DECODERS[kind].decode(data)  # type: ignore[no-any-return]


def order_of(number: int, ids: Tensor, step: Step, answer: Answer) -> StepOrder:
    """An order to compute a step."""
    return StepOrder(
        number=number,
        answer=answer,
        ids=_packed(ids),
        positions=_packed(step.positions),
        sequences=_packed(step.sequences),
        lengths=_packed(step.lengths),
        block_table=_packed(step.block_table),
        wanted=_packed(step.wanted),
    )


def step_of(order: StepOrder) -> tuple[Tensor, Step]:
    """The token ids and the step of an order."""
    lengths = _unpacked(order.lengths)
    return _unpacked(order.ids), Step(
        positions=_unpacked(order.positions),
        sequences=_unpacked(order.sequences),
        lengths=lengths,
        block_table=_unpacked(order.block_table).view(len(lengths), -1),
        wanted=_unpacked(order.wanted),
    )


def answer_of(order: StepOrder, logits: Tensor) -> StepAnswer:
    """What an order wants of the logits; copying them to the host waits for the device."""
    found = logits.argmax(-1).int() if order.answer == "tokens" else logits.float()
    values = found.cpu().numpy()
    return StepAnswer(number=order.number, shape=values.shape, values=values.tobytes())


def tokens_of(answer: StepAnswer) -> list[int]:
    """The likeliest tokens, where those were wanted."""
    return numpy.frombuffer(answer.values, numpy.int32).tolist()


def logits_of(answer: StepAnswer) -> Tensor:
    """[R, vocabulary], where those were wanted."""
    return torch.from_numpy(numpy.frombuffer(answer.values, numpy.float32).copy()).view(answer.shape)


def _packed(numbers: Tensor) -> bytes:
    return numbers.to(torch.int32).contiguous().numpy().tobytes()


def _unpacked(data: bytes) -> Tensor:
    return torch.from_numpy(numpy.frombuffer(data, numpy.int32).astype(numpy.int64))
