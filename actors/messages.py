"""Every value that crosses a process: what callers ask, what ranks obey, what they answer, what callers get.

Ranks keep what they were told about a slot, so a plan says only what is new. Its parts apply in the order in
which they are written here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from actors.sampling_params import SamplingParams

Finish = Literal["stop", "length"]


class Begun(Struct, frozen=True, array_like=True):
    """What there is already of a request's texts: they go on from there as if nothing had happened."""

    texts: tuple[tuple[int, ...] | None, ...]
    """The tokens of each so far; None for one that has ended, or that nobody wants any more."""
    cached_tokens: int = 0
    """What was told of the prompt: so many tokens of it were in the cache."""


class Request(Struct, frozen=True, array_like=True):
    """A caller's wish."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    namespace: str = ""
    """What else the cache's contents depend on, such as an adapter: prefixes are shared inside one only."""
    begun: Begun | None = None
    """Where others have worked on it before. A beam search has none: it starts anew."""


class Admitted(Struct, frozen=True, array_like=True):
    """A sequence takes a slot, empty so far."""

    slot: int
    request: str
    index: int
    """Which of the request's texts."""
    params: SamplingParams
    tokens: bytes
    """All that are known, as `packed` makes them: the prompt, and what was generated before a preemption."""
    num_prompt: int
    blocks: tuple[int, ...]
    namespace: str = ""


class Fork(Struct, frozen=True, array_like=True):
    """A slot becomes like another: tokens, length, row of blocks, state of sampling."""

    source: int
    target: int
    index: int
    """Which of the request's texts the target is."""


class Assigned(Struct, frozen=True, array_like=True):
    """Blocks of a slot's table, from one of its places on."""

    slot: int
    first: int
    blocks: tuple[int, ...]


class Chunk(Struct, frozen=True, array_like=True):
    """Known tokens of a slot to compute; where they are the last, some slots get a token each."""

    slot: int
    start: int
    count: int
    sampled: tuple[int, ...] = ()
    """Slots that sample from the last token's logits: none, this one, or this one and its forks."""
    scored: bool = False
    """All known tokens are the prompt's, and wanted is the log-probability of each that follows one of these:
    so many as these are, or one fewer where the prompt ends with them."""


class Run(Struct, frozen=True, array_like=True):
    """Tokens given here to compute, in place of any that the slot has there; each one's logits are wanted."""

    slot: int
    start: int
    tokens: tuple[int, ...]


class Beams(Struct, frozen=True, array_like=True):
    """The runs of these slots are the hypotheses of one beam search."""

    request: str
    slots: tuple[int, ...]
    scores: tuple[float, ...]
    """Sums of log-probabilities."""


class StepPlan(Struct, frozen=True, array_like=True):
    """What every rank does in one step.

    The step's sequences are in this order: slots that decode, rising; runs; chunks. So are the rows of
    logits: one for each slot that decodes, for every token of a run, for every slot that a chunk lists. Each
    of these samples a token. After them all come rows that only score: for every token of a scored chunk that
    another one of the prompt follows.
    """

    step: int
    released: tuple[int, ...] = ()
    """Slots that nobody has any more."""
    admitted: tuple[Admitted, ...] = ()
    forks: tuple[Fork, ...] = ()
    assigned: tuple[Assigned, ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    """(source, target) blocks, one after another, before anything is computed."""
    decode: bytes = b""
    """A bit for every slot that computes the token it sampled last; slot 0 is the first byte's lowest."""
    runs: tuple[Run, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    beams: tuple[Beams, ...] = ()

    @property
    def num_tokens(self) -> int:
        """What the step computes."""
        runs = sum(len(run.tokens) for run in self.runs)
        return len(slots_of(self.decode)) + runs + sum(chunk.count for chunk in self.chunks)


class Order(Struct, frozen=True, array_like=True):
    """A plan as ranks get it."""

    plan: StepPlan
    tokens: bytes = b""
    """What the slots that decode sampled last, `packed`, where the ranks that need it did not sample it."""


class Logprobs(Struct, frozen=True, array_like=True):
    """Of one token that was sampled, or is there in a prompt, and of the likeliest in its place."""

    sampled: float
    tokens: tuple[int, ...] = ()
    values: tuple[float, ...] = ()


class Hypothesis(Struct, frozen=True, array_like=True):
    """A beam, lengthened by a token."""

    slot: int
    token: int
    score: float
    """Sum of log-probabilities, or what finished ones are ranked by."""


class BeamDecision(Struct, frozen=True, array_like=True):
    """What becomes of a beam search after a step."""

    request: str
    kept: tuple[Hypothesis, ...]
    """The best first."""
    finished: tuple[Hypothesis, ...] = ()
    done: bool = False
    """The finished ones are all there will be."""


class StepResult(Struct, frozen=True, array_like=True):
    """What a step sampled, in the order of its rows; those that only score are not among them."""

    step: int
    tokens: tuple[int, ...]
    logprobs: Mapping[int, Logprobs] = {}
    """By row, where they were asked for."""
    beams: tuple[BeamDecision, ...] = ()
    prompt_logprobs: Mapping[int, tuple[Logprobs, ...]] = {}
    """By slot of a scored chunk, one for every row that scores: of the token that follows in the prompt."""
    logits: Mapping[int, bytes] = {}
    """By row, where they were asked for: float32, one for each token of the vocabulary."""
    failures: Mapping[int, str] = {}
    """By row: why a grammar cannot be followed any further."""


class Usage(Struct, frozen=True, array_like=True):
    """What a text took."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in the cache."""


class Tokens(Struct, frozen=True, array_like=True):
    """News of one text. The token that ended it is among its tokens."""

    request: str
    index: int
    tokens: tuple[int, ...]
    finish: Finish | None = None
    usage: Usage | None = None
    """So far; with a text's first news and with the last."""
    logprobs: tuple[Logprobs, ...] = ()
    score: float | None = None
    """Of a text that beam search found."""
    prompt_logprobs: tuple[Logprobs, ...] = ()
    """With a text's first news: of every token of the prompt but the first."""
    logits: tuple[bytes, ...] = ()
    """What each of its tokens was chosen by: float32, one for each token of the vocabulary."""
    failure: str | None = None
    """With the last news: why this is no end that was asked for."""


class Beat(Struct, frozen=True, array_like=True):
    """A sign of life."""

    secret: bytes
    """Of the group: what does not have it is not from its ranks."""
    rank: int
    ready: bool
    """Whether it has loaded its engine and takes orders."""
    done: int
    """Steps that it has finished."""


Message = Request | StepPlan | Order | StepResult | Tokens | Beat
MessageT = TypeVar("MessageT", Request, StepPlan, Order, StepResult, Tokens, Beat)

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[type, Any] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Request, StepPlan, Order, StepResult, Tokens, Beat)
}


def encode(message: Message) -> bytes:
    """As it travels."""
    return _ENCODER.encode(message)


def decode(kind: type[MessageT], data: bytes) -> MessageT:
    """The message, checked against its kind."""
    return _DECODERS[kind].decode(data)


def packed(tokens: Sequence[int]) -> bytes:
    """Four bytes each."""
    return array("i", tokens).tobytes()


def unpacked(data: bytes) -> list[int]:
    """The tokens that were packed."""
    return array("i", data).tolist()


def bits_of(slots: int) -> bytes:
    """A set of slots, one bit each in an integer, as a plan has it."""
    return slots.to_bytes(-(-slots.bit_length() // 8), "little")


def slots_of(bits: bytes) -> list[int]:
    """The slots of a set, rising."""
    return list(_set_bits(int.from_bytes(bits, "little")))


def _set_bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
