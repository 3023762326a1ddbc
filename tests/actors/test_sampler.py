"""The sampler against Transformers' processors, OpenAI's definitions and itself in other company."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from actors.needs import Needs
from actors.sampler import Sampler, in_parts
from actors.sampling_params import SamplingParams, with_seed
from builders.errors import UserError
from tests.strategies import quick

VOCAB, EOS = 40, (2, 3)


def a_sampler(slots: int = 8) -> Sampler:
    return Sampler(slots=slots, vocab_size=VOCAB, eos_token_ids=EOS)


def logits_of(rows: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def tensors(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


def tokens_of(sampler: Sampler, logits: Tensor, slots: Tensor, positions: Tensor) -> list[int]:
    return sampler.sample(logits, slots, positions).tokens.tolist()  # type: ignore[no-any-return]


def requests() -> SearchStrategy[SamplingParams]:
    """Everything that a row may ask for, each also absent."""
    off_or: Any = lambda off, on: st.just(off) | on  # noqa: E731
    return st.builds(
        SamplingParams,
        max_tokens=st.just(20),
        min_tokens=off_or(0, st.integers(1, 6)),
        temperature=off_or(0.0, st.floats(0.1, 3)),
        top_k=off_or(0, st.integers(1, 50)),
        top_p=off_or(1.0, st.floats(0.05, 0.99)),
        min_p=off_or(0.0, st.floats(0.01, 0.9)),
        repetition_penalty=off_or(1.0, st.floats(0.5, 2)),
        presence_penalty=off_or(0.0, st.floats(-2, 2)),
        frequency_penalty=off_or(0.0, st.floats(-2, 2)),
        seed=st.integers(-(2**63), 2**63 - 1),
        logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5), max_size=5),
        stop_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=3).map(tuple),
        ignore_eos=st.booleans(),
        logprobs=st.none() | st.integers(0, 4),
    )


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)


def expected_scores(params: SamplingParams, prompt: list[int], text: list[int], logits: Tensor) -> Tensor:
    """A row [V] before its draw, in double precision, by Transformers where it has the thing."""
    ids, scores = torch.tensor([prompt + text]), logits[None].double()
    for token, bias in params.logit_bias.items():
        scores[0, token] += bias
    scores = RepetitionPenaltyLogitsProcessor(float(params.repetition_penalty))(ids, scores)
    for token in set(text):
        scores[0, token] -= params.presence_penalty + params.frequency_penalty * text.count(token)
    ends = [*params.stop_token_ids, *(() if params.ignore_eos else EOS)]
    if ends and params.min_tokens:
        scores = MinNewTokensLengthLogitsProcessor(len(prompt), params.min_tokens, ends)(ids, scores)
    return scores if params.is_greedy else warpers(params)(ids, scores)


def warpers(params: SamplingParams) -> LogitsProcessorList:
    """In the order of Transformers' `generate`."""
    chosen = LogitsProcessorList([TemperatureLogitsWarper(float(params.temperature))])
    if params.top_k:
        chosen.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chosen.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chosen.append(MinPLogitsWarper(params.min_p))
    return chosen


@quick
@given(requests(), prompts, prompts, st.integers(0, 2**31))
def test_scores_are_those_of_transformers(
    params: SamplingParams, prompt: list[int], text: list[int], seed: int
) -> None:
    sampler, logits = a_sampler(), logits_of(1, seed)
    sampler.admit(5, params, prompt, text=text)
    slots, positions, needs = tensors(5), tensors(len(prompt) + len(text)), sampler.needs([5])
    scores = sampler.adjusted(logits, slots, positions)
    if not params.is_greedy:
        noisy = replace(params, seed=1)
        drawable = sampler._drawable(scores, slots, positions, needs)
        other = a_sampler()
        other.admit(5, replace(noisy, top_k=0, top_p=1.0, min_p=0.0, seed=params.seed), prompt, text=text)
        unfiltered = other._drawable(scores, slots, positions, other.needs([5]))
        # The noise is the same in both: what differs is what the filters took.
        scores = torch.where(drawable.isfinite(), scores / max(params.temperature, 1e-5), -math.inf)
        assert torch.where(drawable.isfinite(), unfiltered, -math.inf).equal(drawable)
    expected = expected_scores(params, prompt, text, logits[0])
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-5)


@quick
@given(st.lists(st.tuples(requests(), prompts), min_size=1, max_size=6), st.integers(0, 2**31), st.randoms())
def test_a_row_in_company_is_the_row_alone(
    rows: list[tuple[SamplingParams, list[int]]], seed: int, random: Any
) -> None:
    """Several steps, in any slots and order, with padding between: the same tokens and log-probabilities."""
    company, slots = a_sampler(), random.sample(range(8), len(rows))
    for slot, (params, prompt) in zip(slots, rows, strict=True):
        company.admit(slot, params, prompt)
    alone = [a_sampler(1) for _ in rows]
    for sampler, (params, prompt) in zip(alone, rows, strict=True):
        sampler.admit(0, params, prompt)
    for step in range(4):
        logits = logits_of(len(rows) + 1, seed + step, scale=1.0)
        order = random.sample(range(len(rows)), len(rows))
        places = [len(rows[row][1]) + step for row in order]
        batch = torch.cat([logits[order], logits[-1:]])
        together = company.sample(
            batch, tensors(*[slots[row] for row in order], company.nobody), tensors(*places, 0)
        )
        for index, row in enumerate(order):
            single = alone[row].sample(logits[row, None], tensors(0), tensors(places[index]))
            assert single.tokens.item() == together.tokens[index].item()
            if single.logprobs is not None:
                assert together.logprobs is not None
                torch.testing.assert_close(together.logprobs[index], single.logprobs[0])


@quick
@given(requests(), prompts, st.integers(0, 2**31))
def test_an_interrupted_request_goes_on_as_it_would_have(
    params: SamplingParams, prompt: list[int], seed: int
) -> None:
    whole, text = a_sampler(), []
    whole.admit(0, params, prompt)
    for step in range(6):
        logits, position = logits_of(1, seed + step, scale=1.0), tensors(len(prompt) + step)
        resumed = a_sampler()
        resumed.admit(3, params, prompt, text=text)
        again = tokens_of(resumed, logits, tensors(3), position)
        assert tokens_of(whole, logits, tensors(0), position) == again
        text += again


@quick
@given(st.lists(st.tuples(st.integers(0, 3), requests(), prompts), max_size=25), st.integers(0, 2**31))
def test_requests_leave_nothing_behind(
    visits: list[tuple[int, SamplingParams, list[int]]], seed: int
) -> None:
    """A visit ends what is in its slot or begins there; then all who are there go a step further."""
    sampler = a_sampler(4)
    present: dict[int, tuple[SamplingParams, list[int], list[int]]] = {}
    for step, (slot, params, prompt) in enumerate(visits):
        if slot in present:
            sampler.release(slot)
            del present[slot]
        else:
            sampler.admit(slot, params, prompt)
            present[slot] = params, prompt, []
        if not present:
            continue
        logits = logits_of(len(present), seed + step, scale=1.0)
        positions = [len(prompt) + len(text) for _, prompt, text in present.values()]
        tokens = tokens_of(sampler, logits, tensors(*present), tensors(*positions))
        for row, (token, (params, prompt, text)) in enumerate(zip(tokens, present.values(), strict=True)):
            fresh = a_sampler(1)
            fresh.admit(0, params, prompt, text=text)
            assert tokens_of(fresh, logits[row, None], tensors(0), tensors(positions[row])) == [token]
            text.append(token)
    assert sampler.needs(present) == Needs.union(Needs.of(params) for params, _, _ in present.values())


def test_greedy_is_argmax_and_touches_nothing() -> None:
    sampler, logits = a_sampler(), logits_of(3)
    sampler.admit(0, SamplingParams(temperature=0), [1])
    sampler.admit(1, SamplingParams(top_k=1), [1])
    assert sampler.needs([0, 1]) == Needs()
    before = logits.clone()
    assert tokens_of(sampler, logits, tensors(0, 1, 8), tensors(1, 1, 1)) == before.argmax(-1).tolist()
    sampler.admit(2, SamplingParams(seed=1, logit_bias={1: 2.0}, presence_penalty=1, logprobs=2), [1])
    found = sampler.sample(logits, tensors(0, 1, 2), tensors(1, 1, 1))
    assert found.tokens[:2].tolist() == before[:2].argmax(-1).tolist()
    assert logits.equal(before)


def test_greedy_takes_the_first_of_equals() -> None:
    sampler, logits = a_sampler(), torch.zeros(2, VOCAB)
    sampler.admit(0, SamplingParams(temperature=0), [1])
    assert tokens_of(sampler, logits, tensors(0, 0), tensors(1, 2)) == [0, 0]
    sampler.admit(1, SamplingParams(seed=1), [1])
    assert tokens_of(sampler, logits, tensors(0, 0), tensors(1, 2)) == [0, 0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=0),
        SamplingParams(seed=1, temperature=0.5),
        SamplingParams(seed=2, temperature=2, top_k=9),
        SamplingParams(seed=3, top_p=0.8),
        SamplingParams(seed=4, min_p=0.1, logit_bias={7: 1.5}),
        SamplingParams(seed=-5, temperature=1.5, top_k=20, top_p=0.9, min_p=0.02),
    ],
)
@pytest.mark.parametrize("over_seeds", [False, True])
def test_draws_follow_the_distribution(params: SamplingParams, over_seeds: bool) -> None:
    """A chi-square test: 20000 draws of one request at as many places, or of many seeds at one place."""
    draws, logits = 20_000, logits_of(1, seed=9, scale=1.0)
    sampler = a_sampler(200)
    if over_seeds:
        for slot in range(200):
            sampler.admit(slot, params, [1], index=slot)
        slots, positions = torch.arange(draws) % 200, 1 + torch.arange(draws) // 200
    else:
        sampler.admit(0, params, [1])
        slots, positions = torch.zeros(draws, dtype=torch.int64), torch.arange(draws)
    found = sampler.sample(logits.expand(draws, -1), slots, positions).tokens
    counts = torch.bincount(found, minlength=VOCAB).double()
    expected = expected_scores(params, [1], [], logits[0])[0].softmax(-1) * draws
    assert counts[expected == 0].sum() == 0
    often = expected > 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum().item()
    freedom = int(often.sum()) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom) + 6


def test_seeds_and_texts_of_one_request_differ() -> None:
    sampler = a_sampler()
    for slot in range(4):
        sampler.admit(slot, SamplingParams(seed=5), [1], index=slot)
    sampler.admit(4, SamplingParams(seed=6), [1])
    sampler.admit(5, SamplingParams(), [1])
    sampler.admit(6, SamplingParams(), [1])
    texts = [
        [tokens_of(sampler, torch.zeros(1, VOCAB), tensors(slot), tensors(at))[0] for at in range(1, 13)]
        for slot in range(7)
    ]
    # A seed's second text is the next seed's first, and no more than that.
    assert texts[1] == texts[4]
    assert len({tuple(text) for text in texts}) == 6


def test_log_probabilities_are_the_models() -> None:
    sampler, logits = a_sampler(), logits_of(2)
    sampler.admit(0, SamplingParams(seed=1, temperature=3, top_k=4, logit_bias={3: 9.0}, logprobs=3), [1])
    sampler.admit(1, SamplingParams(temperature=0, logprobs=0), [1])
    found = sampler.sample(logits, tensors(0, 1), tensors(1, 1))
    logs = logits.log_softmax(-1)
    assert found.logprobs is not None and found.best_tokens is not None and found.best_logprobs is not None
    torch.testing.assert_close(found.logprobs, logs.gather(1, found.tokens[:, None])[:, 0])
    torch.testing.assert_close(found.best_logprobs, logs.topk(3).values)
    assert found.best_tokens.equal(logs.topk(3).indices)


def test_ends_are_barred_until_there_are_enough_tokens() -> None:
    sampler, logits = a_sampler(), torch.zeros(1, VOCAB)
    logits[0, [2, 3, 9]] = tensors(30, 20, 10).float()
    logits[0, 11] = 5
    sampler.admit(0, SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(9,)), [1, 1, 1])
    assert [tokens_of(sampler, logits, tensors(0), tensors(at))[0] for at in (3, 4, 5)] == [11, 11, 2]
    sampler.release(0)
    ignoring = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(2,), ignore_eos=True)
    sampler.admit(0, ignoring, [1, 1, 1])
    assert [tokens_of(sampler, logits, tensors(0), tensors(at))[0] for at in (3, 4, 5)] == [3, 3, 2]


class OnDevice(TorchDispatchMode):
    """Every operation's tensors are on the meta device, which has no values to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        assert {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)} == {"meta"}, func
        self.operations.append(func.overloadpacket.__name__)
        return result


EVERYTHING = SamplingParams(
    seed=1,
    temperature=0.5,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    min_tokens=3,
    logit_bias={4: 1.0},
    frequency_penalty=1,
    logprobs=3,
)


SEARCH = {"view", "max", "argmax", "gather", "mul", "add", "select"}


@pytest.mark.parametrize("size", [97, 300, 2004 * 64])
def test_rows_are_searched_in_parts(size: int) -> None:
    """As on a GPU; the first of equals counts, as on the CPU."""
    scores = torch.randint(0, 50, (5, size)).float()
    assert torch.equal(in_parts(scores), scores.argmax(-1))


def test_a_step_neither_waits_for_the_device_nor_sends_anything_there() -> None:
    """What a CUDA graph asks for; and a greedy step does nothing but look for the largest."""
    sampler = Sampler(slots=4, vocab_size=VOCAB, eos_token_ids=EOS, device="meta")
    rows = [
        torch.zeros(3, *shape, dtype=dtype, device="meta")
        for shape, dtype in (((VOCAB,), torch.float32), ((), torch.int64), ((), torch.int64))
    ]
    sampler.admit(0, SamplingParams(temperature=0), [1])
    with OnDevice() as greedy:
        sampler.sample(*rows)
    assert {"max", "argmax"} <= {*greedy.operations} <= SEARCH
    sampler.admit(1, EVERYTHING, [1])
    with OnDevice() as everything:
        sampler.sample(*rows)
    assert {"sort", "topk", "scatter_add", "scatter_add_", "log1p_"} <= set(everything.operations)


def test_slots_are_given_once_and_come_back_clean() -> None:
    sampler, logits = a_sampler(2), logits_of(1)
    everything = SamplingParams(
        seed=1, min_tokens=9, max_tokens=9, presence_penalty=2, logit_bias={4: 50.0}, top_k=3
    )
    for _ in range(20):
        sampler.admit(1, everything, [1, 2])
        assert tokens_of(sampler, logits, tensors(1), tensors(2)) == [4]
        with pytest.raises(ValueError, match="slot 1 of 2 is not free"):
            sampler.admit(1, everything, [1])
        sampler.release(1)
        sampler.admit(1, SamplingParams(temperature=0, frequency_penalty=1e-9), [1])
        sampler.admit(0, replace(everything, seed=2), [3])
        assert tokens_of(sampler, logits, tensors(1), tensors(1)) == logits.argmax(-1).tolist()
        sampler.release(1)
        sampler.release(0)
    assert sampler.needs([]) == Needs()


def test_who_has_no_penalties_counts_for_nobody_else() -> None:
    """The memory of what was said goes from slot 0 to slot 1, and slot 0 goes on without."""
    sampler, penalized = a_sampler(2), SamplingParams(temperature=0, frequency_penalty=2)
    logits = torch.zeros(2, VOCAB)
    logits[:, 7], logits[:, 8] = 3, 2
    sampler.admit(0, penalized, [1])
    sampler.release(0)
    sampler.admit(1, penalized, [1])
    sampler.admit(0, SamplingParams(temperature=0), [1])
    found = [tokens_of(sampler, logits, tensors(0, 1), tensors(at, at)) for at in (1, 2, 3)]
    assert found == [[7, 7], [7, 8], [7, 7]]


def test_layout_tells_when_tensors_move() -> None:
    sampler = a_sampler()
    sampler.reserve(penalized=2)
    start = sampler.layout
    for slot in (0, 1):
        sampler.admit(slot, SamplingParams(presence_penalty=1), [1])
    assert sampler.layout == start
    sampler.admit(2, SamplingParams(presence_penalty=1), [1])
    assert sampler.layout == start + 1
    sampler.admit(3, SamplingParams(logit_bias={1: 1.0, 2: 1.0}), [1])
    sampler.admit(4, SamplingParams(logit_bias={5: 1.0}), [1])
    assert sampler.layout == start + 2


@pytest.mark.parametrize(
    ("params", "prompt", "name"),
    [
        (SamplingParams(logit_bias={VOCAB: 1.0}), [1], "logit_bias"),
        (SamplingParams(stop_token_ids=(-1,)), [1], "stop_token_ids"),
        (SamplingParams(), [VOCAB], "prompt"),
    ],
)
def test_tokens_that_do_not_exist_are_refused(params: SamplingParams, prompt: list[int], name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: tokens must be from 0 to 39"):
        a_sampler().admit(0, params, prompt)


def test_a_seed_is_drawn_once_for_all_ranks() -> None:
    assert with_seed(SamplingParams(seed=4)).seed == 4
    assert with_seed(SamplingParams()).seed != with_seed(SamplingParams()).seed
