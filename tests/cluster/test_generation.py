"""Many prompts at once, with a real scheduler and ranks without a model: order, ends, pieces, refusals."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from actors.detokenizer import Words
from actors.messages import Request, Tokens
from actors.sampling_params import SamplingParams
from actors.stops import Piece
from builders.errors import UserError
from builders.limits import Limits
from cluster.generation import Result, generate
from tests.actors.fake_ranks import EOS, VOCABULARY, FakeRanks, alone, beams_alone, logits_alone, prompt_alone
from tests.actors.service import BLOCK, Service, limits_of
from tests.actors.test_detokenizer import byte_level

PROMPTS = [[1, 2, 3, 4, 5], [2], [3, 1, 3, 1, 3, 1, 3, 1, 3], [6, 5, 4], [1, 1, 2], [4] * 20]


class Ranks:
    """Plans a step ahead of its results, as ranks with a device do."""

    def __init__(self, limits: Limits | None = None, **options: Any) -> None:
        self.limits = limits or limits_of()
        self.service = Service(self.limits, **options)
        self.eos = frozenset([EOS])
        self.num_steps = 0
        self.cancelled: list[tuple[str, int | None]] = []

    @property
    def has_work(self) -> bool:
        return self.service.scheduler.has_work

    def add(self, request: Request) -> None:
        self.service.scheduler.add(request)

    def cancel(self, request: str, index: int | None = None) -> None:
        self.cancelled.append((request, index))
        self.service.scheduler.cancel(request, index)

    def step(self) -> list[Tokens]:
        self.num_steps += 1
        plans = [self.service.plan()]
        ahead = self.service.scheduler.schedule()
        if ahead:
            plans.append(ahead)
        ranks: FakeRanks = self.service.ranks
        return [news for plan in plans for news in self.service.scheduler.update(ranks.execute(plan))]


def greedy(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **changes})


def tokens_of(results: list[Result]) -> list[list[tuple[int, ...]]]:
    return [[output.tokens for output in result.outputs] for result in results]


def expected(
    prompts: list[list[int]], params: SamplingParams, limit: int = 96
) -> list[list[tuple[int, ...]]]:
    requests = [Request(str(number), tuple(prompt), params) for number, prompt in enumerate(prompts)]
    return [[alone(request, index, 96) for index in range(params.n)] for request in requests]


@pytest.mark.parametrize("num_blocks", [64, 9], ids=["roomy", "preempted"])
def test_every_prompt_gets_its_own_text(num_blocks: int) -> None:
    for params in (greedy(), greedy(ignore_eos=False), greedy(temperature=1, seed=3, n=2)):
        ranks = Ranks(num_blocks=num_blocks)
        assert tokens_of(generate(ranks, PROMPTS, params, words=None)) == expected(PROMPTS, params)
        ranks.service.scheduler.check_integrity()


def test_results_are_in_the_order_of_prompts_and_not_of_ends() -> None:
    ended: list[int] = []

    def hear(number: int, _index: int, piece: Piece) -> None:
        if piece.finish_reason:
            ended.append(number)

    params = greedy(ignore_eos=False, max_tokens=40)
    results = generate(Ranks(), PROMPTS, params, words=None, on_piece=hear)
    assert sorted(ended) == list(range(len(PROMPTS))) != ended
    assert [list(result.prompt) for result in results] == PROMPTS
    assert tokens_of(results) == expected(PROMPTS, params)


def test_pieces_make_up_the_texts() -> None:
    words = Words(byte_level())
    heard: dict[tuple[int, int], str] = {}

    def hear(number: int, index: int, piece: Piece) -> None:
        heard[number, index] = heard.get((number, index), "") + piece.text

    results = generate(Ranks(), PROMPTS, greedy(temperature=1, seed=1, n=3), words=words, on_piece=hear)
    told = {
        (number, index): output.text
        for number, result in enumerate(results)
        for index, output in enumerate(result.outputs)
    }
    assert heard == told and len(told) == 3 * len(PROMPTS)
    assert all(text == words.text(results[n].outputs[i].tokens) for (n, i), text in told.items())


def test_a_stop_string_ends_its_text_alone() -> None:
    words = Words(byte_level())
    free = generate(Ranks(), PROMPTS, greedy(), words=words)
    stop = words.text(free[0].outputs[0].tokens[5:7])
    ranks = Ranks()
    results = generate(ranks, PROMPTS, greedy(stop=(stop,)), words=words)
    for before, after in zip(free, results, strict=True):
        whole, (output,) = before.outputs[0].text or "", after.outputs
        assert output.text == whole.partition(stop)[0]
        assert output.finish == ("stop" if stop in whole else "length")
        assert before.outputs[0].tokens[: len(output.tokens)] == output.tokens
    assert ("0", 0) in ranks.cancelled and len(ranks.cancelled) < len(PROMPTS)
    assert ranks.service.scheduler.num_running == 0


def test_the_engines_longest_sequence_ends_texts_and_nothing_is_held_back() -> None:
    words = Words(byte_level())
    limits = limits_of(max_seq_len=16, max_input_len=15)
    prompts = [[1, 2, 3], [4] * 15]
    whole = generate(Ranks(limits), prompts, greedy(max_tokens=1000), words=words)
    assert [len(result.outputs[0].tokens) for result in whole] == [13, 1]
    assert {result.outputs[0].finish for result in whole} == {"length"}
    last = words.text(whole[0].outputs[0].tokens[-1:])
    held = generate(Ranks(limits), prompts, greedy(max_tokens=1000, stop=(last + "…",)), words=words)
    assert held == whole


def test_beams_come_with_their_scores_the_best_first() -> None:
    params = greedy(num_beams=4, n=3, max_tokens=6, ignore_eos=False)
    results = generate(Ranks(), PROMPTS, params, words=None)
    requests = [Request(str(number), tuple(prompt), params) for number, prompt in enumerate(PROMPTS)]
    assert tokens_of(results) == [beams_alone(request, 96) for request in requests]
    for result in results:
        scores = [output.score for output in result.outputs]
        assert None not in scores and scores == sorted(scores, key=lambda score: -(score or 0))


def test_drafts_change_nothing() -> None:
    params = greedy(max_tokens=30, stop=("x",))
    words = Words(byte_level())
    plain, drafted = Ranks(), Ranks(draft_tokens=4)
    want = generate(plain, PROMPTS, params, words=words)
    assert [one.outputs for one in generate(drafted, PROMPTS, params, words=words)] == [
        one.outputs for one in want
    ]


def test_logprobs_are_one_for_every_token() -> None:
    params = greedy(logprobs=0, ignore_eos=False)
    for result in generate(Ranks(), PROMPTS, params, words=None):
        (output,) = result.outputs
        assert [-one.sampled for one in output.logprobs] == list(output.tokens)


@pytest.mark.parametrize("drafts", [0, 4])
def test_logits_are_a_row_for_every_token(drafts: int) -> None:
    params = greedy(logits=True, max_tokens=30, stop=("x", "yz"))
    prompts = [[1, 2] * 8, [3]]
    for result in generate(Ranks(draft_tokens=drafts), prompts, params, words=Words(byte_level())):
        (output,) = result.outputs
        rows = logits_alone(Request("", result.prompt, params), output.tokens)
        assert output.logits is not None and output.logits.dtype == np.float32
        assert [row.tobytes() for row in output.logits] == rows
    (without,) = generate(Ranks(), [[1]], greedy(), words=None)
    assert without.outputs[0].logits is None


def test_prompts_are_scored_once_whatever_the_number_of_texts() -> None:
    params = greedy(prompt_logprobs=0, n=2, temperature=1, seed=0)
    for result in generate(Ranks(scored_tokens=2), PROMPTS, params, words=None):
        expected = prompt_alone(Request("", result.prompt, params))
        assert list(result.prompt_logprobs) == expected and len(expected) == len(result.prompt) - 1


def test_usage_counts_the_prompt_the_tokens_and_what_was_cached() -> None:
    one_at_a_time = Ranks(limits_of(max_batch_size=1, max_beam_width=1))
    first, second = generate(one_at_a_time, [[1] * 9, [1] * 9], greedy(), words=None)
    assert (first.usage.prompt_tokens, first.usage.output_tokens, first.usage.cached_tokens) == (9, 12, 0)
    assert second.usage.cached_tokens == 9 // BLOCK * BLOCK


def test_a_refused_prompt_is_named_before_any_work() -> None:
    ranks = Ranks()
    with pytest.raises(UserError, match=r"^prompt 2: prompt of 65 tokens: must have from 1 to 64"):
        generate(ranks, [[1], [2], [3] * 65, [4]], greedy(), words=None)
    assert ranks.num_steps == 0 and not ranks.has_work
    ranks.service.scheduler.check_integrity()


def test_nothing_to_do_is_done() -> None:
    assert generate(Ranks(), [], greedy(), words=None) == []


def test_many_more_prompts_than_there_is_room_for() -> None:
    chance = random.Random(0)
    prompts = [chance.choices(range(1, VOCABULARY), k=chance.randint(1, 20)) for _ in range(200)]
    params = greedy(ignore_eos=False)
    assert tokens_of(generate(Ranks(num_blocks=20), prompts, params, words=None)) == expected(prompts, params)
