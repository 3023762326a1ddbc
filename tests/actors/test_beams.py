"""Beam search against Transformers' own `generate(num_beams=...)`, token for token."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from actors.beams import BeamSearch, Decision, likeliest, log_probabilities
from actors.needs import Needs
from actors.sampler import Sampler
from actors.sampling_params import SamplingParams
from tests.oracle import llama

PAD = 1


def random_model(seed: int, vocab_size: int = 23) -> LlamaForCausalLM:
    """Opinions strong enough that ends are met; in float64, so that batching does not change rounding."""
    torch.manual_seed(seed)
    config = llama(vocab_size=vocab_size, initializer_range=0.3, num_hidden_layers=2)
    return LlamaForCausalLM(config).double().eval()


@dataclass
class Search:
    """A search with its texts, which begin after the prompt."""

    rule: BeamSearch
    running: list[tuple[float, tuple[int, ...]]] = field(default_factory=lambda: [(0.0, ())])
    found: list[Text] = field(default_factory=list)
    done: bool = False

    def step(self, scores: list[list[float]], tokens: list[list[int]]) -> Decision:
        decision = self.rule.step([score for score, _ in self.running], scores, tokens)
        for one in decision.finished:
            text = (*self.running[one.beam][1], one.token)
            self.found.append(Text(text, one.score, one.token in self.rule.ends))
        self.running = [(one.score, (*self.running[one.beam][1], one.token)) for one in decision.kept]
        self.done = decision.done
        return decision

    def texts(self) -> list[Text]:
        return sorted(self.found, key=lambda text: -text.score)[: self.rule.params.n]


class Text(NamedTuple):
    tokens: tuple[int, ...]
    score: float
    ended: bool


def searched(
    model: LlamaForCausalLM, prompts: Tensor, params: SamplingParams, ends: set[int]
) -> list[list[Text]]:
    """All searches in one batch whose rows come and go, without a cache."""
    searches = [Search(BeamSearch(params=params, ends=ends, max_tokens=params.max_tokens)) for _ in prompts]
    while open_ones := [index for index, search in enumerate(searches) if not search.done]:
        rows = [[*prompts[i].tolist(), *text] for i in open_ones for _, text in searches[i].running]
        scores = log_probabilities(last_logits(model, rows))
        values, tokens = likeliest(scores, searches[0].rule.num_candidates)
        start = 0
        for index in open_ones:
            end = start + len(searches[index].running)
            searches[index].step(values[start:end].tolist(), tokens[start:end].tolist())
            start = end
    return [search.texts() for search in searches]


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
        found = [text for search in searched(model, prompts, params, ends) for text in search]
        assert [padded(text.tokens, len(texts[0])) for text in found] == texts
        scores = torch.tensor([text.score for text in found])
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
    lengths = {len(text.tokens) for search in found for text in search}
    ended = [text.ended for search in found for text in search]
    assert len(lengths) > 5
    assert 0.2 < sum(ended) / len(ended) < 0.9


def test_one_token() -> None:
    model, prompts = random_model(seed=0), torch.tensor([[4, 5, 6, 7, 8]])
    params = SamplingParams(num_beams=3, n=3, max_tokens=1)
    expected = generated(model, prompts, params, {2}).sequences[:, 5:].tolist()
    [found] = searched(model, prompts, params, {2})
    assert [list(text.tokens) for text in found] == expected


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
    search = Search(BeamSearch(params=params, ends=ends, max_tokens=10))
    while not search.done:
        rows = [[*prompts[0].tolist(), *text] for _, text in search.running]
        positions = torch.full((len(rows),), len(rows[0]))
        logs = log_probabilities(last_logits(model, rows))
        adjusted = sampler.adjusted(logs, torch.arange(len(rows)), positions)
        best = likeliest(adjusted, search.rule.num_candidates)
        beams = search.step(best[0].tolist(), best[1].tolist()).kept
        if beams:
            targets = torch.arange(len(beams))
            sampler.copy(torch.tensor([one.beam for one in beams]), targets)
            sampler.count(targets, torch.tensor([one.token for one in beams]))
    assert [padded(text.tokens, len(texts[0])) for text in search.texts()] == texts
    assert sampler.needs(range(4)) == Needs(penalties=True, bars=True, draw=True)


def test_extreme_length_penalties_do_not_fail() -> None:
    model, prompts = random_model(seed=1), torch.tensor([[4, 5, 6, 7, 8]])
    for penalty in (-100.0, 100.0):
        params = SamplingParams(num_beams=3, n=3, max_tokens=9, length_penalty=penalty)
        [found] = searched(model, prompts, params, {2, 5, 11})
        assert len(found) == 3
