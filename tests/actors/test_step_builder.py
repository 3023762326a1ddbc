"""Steps from plans are what the slots say, whatever came before; what was handed out stays as it was."""

from __future__ import annotations

import random

import pytest
import torch

from actors.messages import Admitted, Chunk, Request, StepPlan, packed, slots_of
from actors.sampling_params import SamplingParams
from actors.scheduler import Scheduler
from actors.step_builder import Batch, StepBuilder
from builders.cuda.steps import is_decoding
from builders.limits import Limits
from tests.actors.fake_ranks import EOS, FakeRanks

LIMITS = Limits(
    max_batch_size=2,
    max_input_len=16,
    max_seq_len=32,
    max_num_tokens=12,
    max_beam_width=3,
    tokens_per_block=4,
)


def a_request(number: int, chance: random.Random) -> Request:
    prompt = tuple(chance.choices((1, 2), k=chance.randint(1, 16)))
    beams = chance.choice((1, 1, 3))
    n = chance.choice((1, 1, 2)) if beams == 1 else 1
    score = chance.choice((None, 0)) if beams == 1 else None
    params = SamplingParams(max_tokens=8, temperature=0, n=n, num_beams=beams, prompt_logprobs=score)
    return Request(f"r{number}", prompt, params)


def check(batch: Batch, plan: StepPlan, ranks: FakeRanks) -> None:
    """Token by token, against the slots as they are after the plan was taken in."""
    decoding = slots_of(plan.decode)
    parts = [(slot, len(ranks.slots[slot].tokens) - 1, 1) for slot in decoding]
    parts += [(run.slot, run.start, len(run.tokens)) for run in plan.runs]
    parts += [(chunk.slot, chunk.start, chunk.count) for chunk in plan.chunks]
    step = batch.step
    assert batch.num_decoding == len(decoding)
    assert batch.slots.tolist() == [slot for slot, _, _ in parts]
    assert step.positions.tolist() == [p for _, start, n in parts for p in range(start, start + n)]
    assert step.sequences.tolist() == [row for row, (_, _, n) in enumerate(parts) for _ in range(n)]
    assert step.lengths.tolist() == [start + n for _, start, n in parts]
    for row, (slot, start, n) in enumerate(parts):
        blocks = -(-(start + n) // LIMITS.tokens_per_block)
        assert step.block_table[row, :blocks].tolist() == ranks.slots[slot].table[:blocks]
    known = [t for chunk in plan.chunks for t in tokens_of(ranks, chunk)]
    assert batch.tokens.tolist()[len(decoding) :] == [t for run in plan.runs for t in run.tokens] + known


def tokens_of(ranks: FakeRanks, chunk: Chunk) -> list[int]:
    return ranks.slots[chunk.slot].tokens[chunk.start : chunk.start + chunk.count]


def check_rows(batch: Batch, plan: StepPlan) -> None:
    """Which tokens give logits, and to whom."""
    firsts = {slot: row for row, slot in enumerate(batch.slots.tolist())}
    sequences, expected = batch.step.sequences.tolist(), []
    for slot in slots_of(plan.decode):
        expected.append((sequences.index(firsts[slot]), slot))
    for run in plan.runs:
        first = sequences.index(firsts[run.slot])
        expected += [(first + place, run.slot) for place in range(len(run.tokens))]
    for chunk in plan.chunks:
        last = sequences.index(firsts[chunk.slot]) + chunk.count - 1
        expected += [(last, slot) for slot in chunk.sampled]
    sampling = batch.step.wanted.tolist()[: len(batch.sampled)]
    assert list(zip(sampling, batch.sampled.tolist(), strict=True)) == expected


def check_scores(batch: Batch, plan: StepPlan, ranks: FakeRanks) -> None:
    """The rows after those that sample: each token's of a scored chunk that has another after it."""
    firsts = {slot: row for row, slot in enumerate(batch.slots.tolist())}
    expected, first = [], len(batch.sampled)
    tokens, sequences = [], batch.step.sequences.tolist()
    for chunk in plan.chunks:
        slot = ranks.slots[chunk.slot]
        following = slot.tokens[chunk.start + 1 : slot.admitted.num_prompt][: chunk.count]
        if chunk.scored and following:
            expected.append((chunk.slot, first, following))
            first += len(following)
            tokens += [sequences.index(firsts[chunk.slot]) + place for place in range(len(following))]
    assert [(one.slot, one.first, one.following.tolist()) for one in batch.scored] == expected
    assert batch.step.wanted.tolist()[len(batch.sampled) :] == tokens


@pytest.mark.parametrize("seed", range(20))
def test_steps_of_random_histories(seed: int) -> None:
    chance = random.Random(seed)
    lanes = chance.choice((1, 2))
    scheduler = Scheduler(
        LIMITS, 24, eos=[EOS], lanes=lanes, draft_tokens=chance.choice((0, 3)), scored_tokens=5
    )
    builder, ranks = StepBuilder(LIMITS, lanes=lanes), FakeRanks(24, 4)
    scheduler.add(Request("scored", (1, 2) * 4, SamplingParams(max_tokens=8, prompt_logprobs=0)))
    for number in range(12):
        scheduler.add(a_request(number, chance))
    results, kinds, scored = [], set(), 0
    while scheduler.has_work:
        plan = scheduler.schedule() if len(results) < 2 else None
        if plan:
            kinds.add((bool(plan.decode), bool(plan.chunks)))
            batch = builder.build(plan)
            ranks.take_in(plan)
            check(batch, plan, ranks)
            check_rows(batch, plan)
            check_scores(batch, plan, ranks)
            assert is_decoding(batch.step) or plan.chunks or plan.runs
            scored += len(batch.scored)
            results.append(ranks.compute(plan))
        else:
            scheduler.update(results.pop(0))
    assert len(kinds) > 1 and scored


def test_what_was_handed_out_stays() -> None:
    builder = StepBuilder(LIMITS)
    params = SamplingParams()
    one = Admitted(1, "r", 0, params, packed([7, 8]), 2, (5, 6))
    builder.build(StepPlan(0, admitted=(one,), chunks=(Chunk(1, 0, 2, (1,)),)))
    first = builder.build(StepPlan(1, decode=b"\x02"))
    before = {name: value.clone() for name, value in vars(first.step).items()}
    builder.build(StepPlan(2, released=(1,), decode=b"\x02"))
    assert all(torch.equal(value, before[name]) for name, value in vars(first.step).items())
    assert first.step.positions.tolist() == [2] and first.step.block_table.tolist() == [[5]]
