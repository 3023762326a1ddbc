"""Steps of prompts beside tokens that are alone in their sequences: those in front are in no tile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders.cuda.site import sites_of
from builders.cuda.steps import Tiles
from builders.cuda.table import KERNELS
from builders.cuda.target import Target
from builders.cuda.unit import KernelPlan, candidates, sources_of
from builders.export import export_rank
from builders.kernels.call import Call, Runner, Source
from builders.keys import Recipe
from builders.limits import Limits
from builders.mapping import Mapping
from builders.ops import Step
from builders.spec import ModelSpec
from tests.beyond import BEYOND, spec_of
from tests.cuda_ranks import On, Pair, further, fused_programs, made_up, pair_of, prompts
from tests.sim import BLOCK

LIMITS = Limits(max_batch_size=8, max_input_len=48, max_seq_len=48, max_num_tokens=96, tokens_per_block=BLOCK)
FIRST = [1, 5, 11, 2, 9, 3, 1, 7]
"""Whole prompts."""
MIXED = [[1, 1, 1, 3, 1, 20, 1, 2], [1, 1, 1, 1, 1, 1, 1, 4], [1] * 7 + [17]]
"""More tokens of each: alone, in runs, and as a chunk of a prompt; those after the first run are in tiles."""
PACKED: dict[str, ModelSpec] = {
    **{name: spec_of(name) for name in ("llama2-gqa", "starcoder2", "gpt2", "mpt", "mpt-window")},
    "clipped": spec_of("dbrx"),
}
"""With rotation and without, with a window, ALiBi, or both."""
APART: dict[str, ModelSpec] = {
    "mpt-qk-norm-whole": spec_of("mpt-qk-norm-whole"),
    "qk-norm-rope-window": replace(BEYOND["nemo-biases"], qk_norm="head", sliding_window=7),
}
"""Where q and k are something else before they are rotated: the cache is written before."""


class Launches:
    """Executes launches, and remembers those of attention."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self.seen, self.sources = list[Call](), set[Source]()

    def __call__(self, calls: Iterable[Call]) -> None:
        calls = list(calls)
        self.sources |= {call.source for call in calls}
        self.seen += [call for call in calls if call.kernel in ("attention.decode", "tiles.tiled")]
        self._run(calls)

    def of_attention(self) -> list[tuple[str, int, bool]]:
        """Kernel, tokens or tiles, and whether q is packed with k and v, since this was asked last."""
        found, self.seen = self.seen, []
        return [_described(call) for call in found]


def _described(call: Call) -> tuple[str, int, bool]:
    constants = dict(call.constants)
    if call.kernel == "tiles.tiled":
        return "tiles", call.grid[1], False
    return "tokens", call.grid[0], bool(constants["PACKED"])


@pytest.mark.parametrize(("name", "packed"), [*((n, True) for n in PACKED), *((n, False) for n in APART)])
def test_tokens_runs_and_chunks(name: str, packed: bool, run: Runner) -> None:
    spec, launches = (PACKED | APART)[name], Launches(run)
    pair, step = pair_of(spec, made_up(spec), LIMITS, On(run=launches)), prompts(FIRST, LIMITS)
    same(pair, step)
    expected = [(1, 7)] * spec.num_layers
    assert numbers(launches, packed) == expected
    for counts, alone, tiles in zip(MIXED, (3, 7, 7), (5, 1, 1), strict=True):
        step = further(step, counts)
        same(pair, step)
        assert numbers(launches, packed) == [(alone, tiles)] * spec.num_layers
    same(pair, further(step, [1] * 8))  # what was written is what decoding reads
    assert [kind for kind, _, _ in launches.of_attention()] == ["tokens"] * spec.num_layers
    assert launches.sources <= compiled(spec)


def compiled(spec: ModelSpec) -> set[Source]:
    """What an engine holds."""
    graphs, target = export_rank(spec, Mapping(), 0, torch.float32, BLOCK), Target(capability=80, device=None)
    return {
        source
        for program in fused_programs(graphs)
        for site in sites_of(program, KERNELS).values()
        for rows in KERNELS[site.op].buckets(LIMITS)
        for source in sources_of(
            KernelPlan(site=site, rows=rows, limits=LIMITS, target=target, recipe=Recipe("test", {})),
            candidates(site, rows, LIMITS, target)[0],
        )
    }


def numbers(launches: Launches, packed: bool) -> list[tuple[int, int]]:
    """Of every layer: tokens that are attended one by one, and tiles."""
    found = launches.of_attention()
    assert [kind for kind, _, _ in found] == ["tiles", "tokens"] * (len(found) // 2)
    assert {how for kind, _, how in found if kind == "tokens"} == {packed}
    return [(ours[1], tiles[1]) for tiles, ours in zip(found[::2], found[1::2], strict=True)]


def same(pair: Pair, step: Step) -> None:
    """Both give the same for every token, so none is left out."""
    step = replace(step, wanted=torch.arange(len(step.positions)))
    if len(step.wanted) == len(step.lengths):
        step = replace(step, wanted=step.wanted[::2])  # no decoding step, so no buffers of one
    ids = torch.randint(0, 90, (len(step.positions),))
    ours, plain = pair.kernels.forward(ids, step), pair.plain.forward(ids, step)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama2-gqa", "mpt-window", "mpt-qk-norm-whole"])
def test_layers_that_repeat_others_do_the_same(name: str, run: Runner) -> None:
    """To the last bit; all but the first repeat."""
    spec, launches = (PACKED | APART)[name], Launches(run)
    pair, step = pair_of(spec, made_up(spec), LIMITS, On(run=launches)), prompts(FIRST, LIMITS)
    same(pair, step)
    step, ids, context = further(step, MIXED[0]), torch.randint(0, 90, (30,)), pair.kernels._context
    found, kernels = list[Tensor](), list[list[tuple[str, int, bool]]]()
    launches.of_attention()
    for repeater in (context.repeater, None):
        context.repeater = repeater
        found.append(pair.kernels.forward(ids, step).clone())
        kernels.append(launches.of_attention())
    assert torch.equal(*found)
    assert kernels[0] == kernels[1] and len(kernels[0]) == 2 * spec.num_layers


@pytest.mark.parametrize(
    ("lengths", "most", "alone"),
    [([1, 1, 4, 1], 8, 2), ([4, 1, 1], 8, 0), ([1, 1, 1], 8, 3), ([1, 1, 1, 4], 2, 2)],
)
def test_every_other_token_is_in_one_tile(lengths: list[int], most: int, alone: int) -> None:
    tiles = Tiles(prompts(lengths, LIMITS), "cpu", most=most)
    assert tiles.alone == alone
    rows = [row for _, first, count, *_ in tiles(2).tolist() for row in range(first, first + count)]
    assert sorted(rows) == list(range(alone, sum(lengths)))
