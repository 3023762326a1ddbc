"""Beam search against Transformers' own `generate(num_beams=...)`, token for token."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from actors.beams import BeamSearch, Hypothesis, likeliest, log_probabilities
from actors.sampler import Needs, Sampler
from actors.sampling_params import SamplingParams
from tests.oracle import llama

PAD = 1


def random_model(seed: int, vocab_size: int = 23) -> LlamaForCausalLM:
    """Opinions strong enough that ends are met; in float64, so that batching does not change rounding."""
    torch.manual_seed(seed)
    config = llama(vocab_size=vocab_size, initializer_range=0.3, num_hidden_layers=2)
    return LlamaForCausalLM(config).double().eval()


def searched(
    model: LlamaForCausalLM, prompts: Tensor, params: SamplingParams, ends: set[int]
) -> list[list[Hypothesis]]:
    """All searches in one batch whose rows come and go, without a cache."""
    searches = [BeamSearch(params=params, ends=ends, max_tokens=params.max_tokens) for _ in prompts]
    rows = [[prompt.tolist()] for prompt in prompts]
    while open_ones := [index for index, search in enumerate(searches) if not search.done]:
        scores = log_probabilities(last_logits(model, [text for index in open_ones for text in rows[index]]))
        values, tokens = likeliest(scores, searches[0].num_candidates)
        start = 0
        for index in open_ones:
            end = start + searches[index].num_running
            beams = searches[index].step(values[start:end].tolist(), tokens[start:end].tolist())
            rows[index] = [[*rows[index][beam.parent], beam.token] for beam in beams]
            start = end
    return [search.hypotheses() for search in searches]


def last_logits(model: LlamaForCausalLM, texts: list[list[int]]) -> Tensor:
    """Rows of one length, as all searches began together."""
    with torch.inference_mode():
        return model(torch.tensor(texts)).logits[:, -1].float()


def generated(
    model: LlamaForCausalLM, prompts: Tensor, params: SamplingParams, ends: set[int], **options: object
) -> Tensor:
    return model.generate(  # type: ignore[no-any-return]
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        num_beams=params.num_beams,
        num_return_sequences=params.n,
        max_new_tokens=params.max_tokens,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        eos_token_id=sorted(ends),
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def padded(tokens: tuple[int, ...], length: int) -> list[int]:
    return [*tokens, *[PAD] * (length - len(tokens))]


CASES = list(
    itertools.product(
        [2, 3, 4, 5], [-1.0, 0.0, 0.6, 1.0, 2.0], [False, True], [{2}, {2, 5, 11}, {2, 3, 4, 5, 6, 7, 8, 9}]
    )
)


@pytest.mark.parametrize(("num_beams", "length_penalty", "early_stopping", "ends"), CASES)
def test_equals_generate(num_beams: int, length_penalty: float, early_stopping: bool, ends: set[int]) -> None:
    model = random_model(seed=num_beams)
    prompts = torch.randint(3, 23, (3, 5), generator=torch.Generator().manual_seed(1))
    for n in (1, num_beams):
        params = SamplingParams(
            num_beams=num_beams,
            n=n,
            max_tokens=12,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        expected = generated(model, prompts, params, ends)
        texts = expected.sequences[:, 5:].tolist()
        found = [hypothesis for search in searched(model, prompts, params, ends) for hypothesis in search]
        assert [padded(hypothesis.tokens, len(texts[0])) for hypothesis in found] == texts
        scores = torch.tensor([hypothesis.score for hypothesis in found])
        torch.testing.assert_close(scores, expected.sequences_scores, rtol=1e-5, atol=1e-6)


def test_the_cases_see_ends_and_full_lengths() -> None:
    """Or the comparison above would say little."""
    prompts = torch.randint(3, 23, (3, 5), generator=torch.Generator().manual_seed(1))
    found = []
    for num_beams, length_penalty, early_stopping, ends in CASES[::7]:
        params = SamplingParams(
            num_beams=num_beams,
            n=num_beams,
            max_tokens=12,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        found += searched(random_model(seed=num_beams), prompts, params, ends)
    lengths = {len(hypothesis.tokens) for search in found for hypothesis in search}
    ended = [hypothesis.ended for search in found for hypothesis in search]
    assert len(lengths) > 5
    assert 0.2 < sum(ended) / len(ended) < 0.9


def test_one_token() -> None:
    model, prompts = random_model(seed=0), torch.tensor([[4, 5, 6, 7, 8]])
    params = SamplingParams(num_beams=3, n=3, max_tokens=1)
    expected = generated(model, prompts, params, {2}).sequences[:, 5:].tolist()
    [found] = searched(model, prompts, params, {2})
    assert [list(hypothesis.tokens) for hypothesis in found] == expected


def test_penalties_and_least_lengths_equal_generate() -> None:
    """The sampler's adjustments, counts moving with the beams from slot to slot."""
    model, ends, prompts = random_model(seed=3), {2, 5}, torch.tensor([[4, 6, 6, 7, 8]])
    params = SamplingParams(
        num_beams=4, n=4, max_tokens=10, min_tokens=4, repetition_penalty=1.7, length_penalty=0.5
    )
    expected = generated(model, prompts, params, ends, repetition_penalty=1.7, min_new_tokens=4)
    texts = expected.sequences[:, 5:].tolist()
    sampler = Sampler(slots=4, vocab_size=23, eos_token_ids=ends)
    for slot in range(4):
        sampler.admit(slot, params, prompts[0].tolist())
    search = BeamSearch(params=params, ends=ends, max_tokens=10)
    rows = prompts.tolist()
    while rows:
        slots = torch.arange(len(rows))
        positions = torch.full((len(rows),), 5 + search.length)
        logs = log_probabilities(last_logits(model, rows))
        best = likeliest(sampler.adjusted(logs, slots, positions), search.num_candidates)
        beams = search.step(best[0].tolist(), best[1].tolist())
        rows = [[*rows[beam.parent], beam.token] for beam in beams]
        if beams:
            targets = torch.arange(len(beams))
            sampler.copy(torch.tensor([beam.parent for beam in beams]), targets)
            sampler.count(targets, torch.tensor([beam.token for beam in beams]))
    found = search.hypotheses()
    assert [padded(hypothesis.tokens, len(texts[0])) for hypothesis in found] == texts
    assert sampler.needs(range(4)) == Needs(penalties=True, bars=True, draw=True)


def test_extreme_length_penalties_do_not_fail() -> None:
    model, prompts = random_model(seed=1), torch.tensor([[4, 5, 6, 7, 8]])
    for penalty in (-100.0, 100.0):
        params = SamplingParams(num_beams=3, n=3, max_tokens=9, length_penalty=penalty)
        [found] = searched(model, prompts, params, {2, 5, 11})
        assert len(found) == 3
