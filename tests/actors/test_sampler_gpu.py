"""The sampler on a CUDA device: the same tokens as on the CPU, with and without a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actors.constraints import Allowed
from actors.sampler import Sampler
from actors.sampling_params import SamplingParams
from builders.kernels.aot import compile_source
from builders.kernels.draw import Wishes, draw
from builders.kernels.driver import Kernels

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
VOCAB = 128256
REQUESTS = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, temperature=0.7, top_k=50),
    SamplingParams(seed=3, top_p=0.9, logprobs=4),
    SamplingParams(seed=4, min_p=0.05, presence_penalty=0.5),
    SamplingParams(seed=5, top_k=900, top_p=0.8, min_p=0.01, min_tokens=4, logit_bias={17: 3.0}),
    SamplingParams(temperature=0, repetition_penalty=1.3, frequency_penalty=0.4),
]


def samplers(device: str) -> Sampler:
    sampler = Sampler(slots=len(REQUESTS), vocab_size=VOCAB, device=device, eos_token_ids=[2])
    for slot, params in enumerate(REQUESTS):
        sampler.admit(slot, params, [5, 6, 7])
    return sampler


def logits_of(step: int, rows: int) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(step)) * 2


@pytest.mark.parametrize("rows", [len(REQUESTS), 70])
def test_cpu_and_cuda_choose_the_same(rows: int) -> None:
    """Rows beyond the requests are padding."""
    on_cpu, on_cuda = samplers("cpu"), samplers("cuda")
    slots = torch.arange(rows).clamp(max=on_cpu.nobody)
    for step in range(8):
        logits, positions = logits_of(step, rows), torch.full((rows,), 3 + step)
        expected = on_cpu.sample(logits, slots, positions)
        found = on_cuda.sample(logits.cuda(), slots.cuda(), positions.cuda())
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.logprobs is not None
        torch.testing.assert_close(found.logprobs.cpu(), expected.logprobs, rtol=1e-4, atol=1e-4)


def compiled_drawer(
    scores: Tensor, slots: Tensor, positions: Tensor, wishes: Wishes, *, scaled: bool
) -> Tensor:
    """The kernel, as an engine would have it."""
    major, minor = torch.cuda.get_device_capability()
    out = torch.empty_like(slots)
    calls = draw(scores.contiguous(), slots, positions, wishes, out=out, scaled=scaled)
    kernels = Kernels([compile_source(call.source, 10 * major + minor) for call in calls])
    kernels.run(calls)
    torch.cuda.synchronize()  # its code goes with it
    return out


@pytest.mark.parametrize("params", [REQUESTS[:3], REQUESTS[1:5], REQUESTS], ids=["k", "p", "both"])
def test_the_kernel_draws_the_same(params: list[SamplingParams]) -> None:
    """A few in a million draws hang on the last digit of a logarithm or an exponential."""
    plain, ours = (
        Sampler(slots=len(params), vocab_size=VOCAB, device="cuda", eos_token_ids=[2], drawer=drawer)
        for drawer in (None, compiled_drawer)
    )
    for sampler in (plain, ours):
        for slot, one in enumerate(params):
            sampler.admit(slot, one, [5, 6, 7])
    slots = torch.arange(len(params), device="cuda")
    for step in range(8):
        logits, positions = logits_of(step, len(params)).cuda(), torch.full_like(slots, 3 + step)
        expected = plain.sample(logits, slots, positions).tokens
        assert ours.sample(logits, slots, positions).tokens.tolist() == expected.tolist()


def test_a_graph_chooses_the_same() -> None:
    """Captured once, replayed for other logits and places; counts go on inside."""
    rows, plain, graphed = len(REQUESTS), samplers("cuda"), samplers("cuda")
    logits = torch.zeros(rows, VOCAB, device="cuda")
    slots = torch.arange(rows, device="cuda")
    positions = torch.zeros(rows, dtype=torch.int64, device="cuda")
    padding = torch.full_like(slots, graphed.nobody)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        graphed.sample(logits, padding, positions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = graphed.sample(logits, slots, positions)
    for step in range(8):
        logits.copy_(logits_of(step, rows))
        positions.fill_(3 + step)
        graph.replay()
        assert captured.tokens.tolist() == plain.sample(logits, slots, positions).tokens.tolist()


@pytest.mark.parametrize("needs_draw", [False, True])
def test_a_step_does_not_wait(needs_draw: bool) -> None:
    sampler = samplers("cuda")
    slots = torch.arange(len(REQUESTS), device="cuda")
    logits = logits_of(0, len(REQUESTS)).cuda()
    needs = None if needs_draw else sampler.needs([0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.sample(logits, slots, slots + 3, needs)
        sampler.release(1)
        sampler.admit(1, REQUESTS[5], [1, 2, 3])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_grammars_refuse_the_same() -> None:
    """Some rows are held to a grammar, and one of them can do nothing but end."""
    on_cpu, on_cuda = samplers("cpu"), samplers("cuda")
    chance = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**31), 2**31 - 1, (3, VOCAB // 32), generator=chance).int()
    bits[1] = 0
    bits[1, 0] = 1 << 2
    ends, rows = torch.tensor([False, True, False]), torch.tensor([1, 5, 6])
    allowed = Allowed(rows=rows, bits=bits, only_ends=ends)
    moved = Allowed(rows=rows.cuda(), bits=bits.cuda(), only_ends=ends.cuda())
    slots = torch.arange(len(REQUESTS))
    for step in range(4):
        logits, places = logits_of(step, len(REQUESTS)), torch.full((len(REQUESTS),), 3 + step)
        expected = on_cpu.sample(logits, slots, places, allowed=allowed).tokens
        found = on_cuda.sample(logits.cuda(), slots.cuda(), places.cuda(), allowed=moved).tokens
        assert found.tolist() == expected.tolist() and expected[5] == 2
        for row, mask in zip((1, 6), (bits[0], bits[2]), strict=True):
            assert mask[expected[row] // 32] >> (expected[row] % 32) & 1
