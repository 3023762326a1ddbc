"""Messages: what is sent arrives, steps that only decode are small, mistakes are refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages
from actors.messages import (
    Admitted,
    Assigned,
    BeamDecision,
    Beams,
    Beat,
    Chunk,
    Fork,
    Hypothesis,
    Logprobs,
    Order,
    Request,
    Run,
    StepPlan,
    StepResult,
    Tokens,
    Usage,
)
from actors.sampling_params import SamplingParams
from builders.errors import UserError

COUNT = st.integers(0, 2**31 - 1)
TOKENS = st.lists(COUNT, max_size=9).map(tuple)
NUMBER = st.floats(allow_nan=False)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(9, 99),
    min_tokens=st.integers(0, 9),
    temperature=st.floats(0, 100),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(COUNT, NUMBER, max_size=3),
    stop=st.lists(st.text(), max_size=3).map(tuple),
    stop_token_ids=TOKENS,
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    logits=st.booleans(),
    n=st.integers(1, 4),
)


def several(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=3).map(tuple)


LOGPROBS = st.builds(Logprobs, NUMBER, TOKENS, st.lists(NUMBER, max_size=3).map(tuple))
HYPOTHESIS = st.builds(Hypothesis, COUNT, COUNT, NUMBER)
MESSAGES: dict[type, Any] = {
    Request: st.builds(Request, st.text(), TOKENS, PARAMS, st.text()),
    StepPlan: st.builds(
        StepPlan,
        COUNT,
        TOKENS,
        several(st.builds(Admitted, COUNT, st.text(), COUNT, PARAMS, st.binary(), COUNT, TOKENS, st.text())),
        several(st.builds(Fork, COUNT, COUNT, COUNT)),
        several(st.builds(Assigned, COUNT, COUNT, TOKENS)),
        several(st.tuples(COUNT, COUNT)),
        st.binary(),
        several(st.builds(Run, COUNT, COUNT, TOKENS)),
        several(st.builds(Chunk, COUNT, COUNT, COUNT, TOKENS, st.booleans())),
        several(st.builds(Beams, st.text(), TOKENS, several(NUMBER))),
    ),
    StepResult: st.builds(
        StepResult,
        COUNT,
        TOKENS,
        st.dictionaries(COUNT, LOGPROBS, max_size=3),
        several(st.builds(BeamDecision, st.text(), several(HYPOTHESIS), several(HYPOTHESIS), st.booleans())),
        st.dictionaries(COUNT, several(LOGPROBS), max_size=3),
        st.dictionaries(COUNT, st.binary(), max_size=3),
    ),
    Tokens: st.builds(
        Tokens,
        st.text(),
        COUNT,
        TOKENS,
        st.sampled_from([None, "stop", "length"]),
        st.none() | st.builds(Usage, COUNT, COUNT, COUNT),
        several(LOGPROBS),
        st.none() | NUMBER,
        several(LOGPROBS),
        several(st.binary()),
    ),
}
MESSAGES[Order] = st.builds(Order, MESSAGES[StepPlan], st.binary())
MESSAGES[Beat] = st.builds(Beat, st.binary(), COUNT, st.booleans(), COUNT)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_what_is_sent_arrives(kind: Any, data: st.DataObject) -> None:
    message = data.draw(MESSAGES[kind])
    assert messages.decode(kind, messages.encode(message)) == message


@given(st.lists(COUNT))
def test_packed_tokens(tokens: list[int]) -> None:
    assert messages.unpacked(messages.packed(tokens)) == tokens
    assert len(messages.packed(tokens)) == 4 * len(tokens)


@given(st.sets(st.integers(0, 300)))
def test_sets_of_slots(slots: set[int]) -> None:
    assert messages.slots_of(messages.bits_of(sum(1 << slot for slot in slots))) == sorted(slots)


def test_a_step_of_256_decoding_sequences_is_small() -> None:
    every_32nd = tuple(Assigned(slot, 17, (4000 + slot,)) for slot in range(8))
    plan = StepPlan(step=10**6, decode=b"\xff" * 32, assigned=every_32nd)
    assert len(messages.encode(plan)) < 128
    assert plan.num_tokens == 256


def test_tokens_of_a_step() -> None:
    plan = StepPlan(step=1, decode=b"\x05", runs=(Run(1, 4, (7, 8, 9)),), chunks=(Chunk(3, 0, 10),))
    assert plan.num_tokens == 2 + 3 + 10


def test_parameters_are_checked_where_they_arrive() -> None:
    wrong = msgspec.msgpack.encode(["id", [1], {"max_tokens": 0}, ""])
    with pytest.raises(UserError, match="max_tokens=0"):
        messages.decode(Request, wrong)
    with pytest.raises(msgspec.ValidationError):
        messages.decode(Request, msgspec.msgpack.encode(["id", ["one"], {}, ""]))
