"""Sums over ranks by kernels of ours, between real processes, one device each; needs two GPUs, and no Ray."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial

import pytest
import torch
from torch import Tensor

from actors.communicators.links import open_peers
from actors.communicators.peers import Peers
from actors.communicators.rendezvous import Rendezvous
from actors.communicators.symmetric import ENVIRONMENT
from builders.kernels.aot import compile_source
from builders.kernels.call import Call
from builders.kernels.driver import LoadedKernel
from builders.kernels.reduce import MOST_BYTES, REDUCE_CONFIG, all_reduce
from tests.actors.communicators.members import act_together

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
SIZES = [size for size in (2, 4, 8) if size <= torch.cuda.device_count()]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def opened(place: Rendezvous) -> Peers:
    torch.cuda.set_device(place.index)
    return open_peers("symmetric", place)


class Reducing:
    """One rank's kernels, compiled when they are first launched."""

    def __init__(self, peers: Peers) -> None:
        assert peers.buffers is not None
        self._buffers, self._kernels = peers.buffers, dict[object, LoadedKernel]()

    @cached_property
    def _capability(self) -> int:
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        out = torch.full_like(x, float("nan"))
        config = replace(REDUCE_CONFIG, overlap=self._capability >= 90)
        for call in all_reduce(x, self._buffers, config, out=out, residual=residual):
            self._loaded(call).launch(call.grid, call.args)
        return out

    def _loaded(self, call: Call) -> LoadedKernel:
        if call.source not in self._kernels:
            self._kernels[call.source] = LoadedKernel(compile_source(call.source, self._capability))
        return self._kernels[call.source]


def parts_of(ranks: int, dtype: torch.dtype) -> Tensor:
    """The largest tensors of all ranks, the same in every process."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(ranks, MOST_BYTES // dtype.itemsize, generator=generator).to(dtype).cuda()


def summed(parts: Tensor, residual: Tensor | None = None) -> Tensor:
    """In float32, in the order of ranks, rounded once."""
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part.float()
    return (total if residual is None else total + residual.float()).to(parts.dtype)


def every_size(peers: Peers, index: int, ranks: int) -> list[str]:
    """To the bit, with residual and without, on both sides of every block's end."""
    reduce, problems = Reducing(peers), []
    for dtype in DTYPES:
        parts = parts_of(ranks, dtype)
        for num_bytes in (4, 16, 508, 512, 516, 8192, 8200, 65536, MOST_BYTES - 4, MOST_BYTES):
            these = parts[:, : num_bytes // dtype.itemsize].contiguous()
            residual = these.flip(1).contiguous()[0]
            for added in (None, residual):
                out = reduce(these[index].clone(), added)
                peers.finish()
                problems += [] if torch.equal(out, summed(these, added)) else [f"{dtype} {num_bytes}"]
    return problems


@pytest.mark.parametrize("ranks", SIZES)
def test_sums_to_the_bit(ranks: int) -> None:
    assert act_together(opened, partial(every_size, ranks=ranks), ranks) == [[]] * ranks


def many_calls(peers: Peers, index: int, ranks: int) -> int:
    """How many sums are wrong: of mixed sizes and dtypes, with other kernels in between, at any pace."""
    reduce, wrong = Reducing(peers), torch.zeros((), device="cuda")
    parts = {dtype: parts_of(ranks, dtype) for dtype in DTYPES}
    shared, own = (torch.Generator().manual_seed(seed) for seed in (3, 100 + index))
    for _ in range(4000):
        dtype = DTYPES[int(torch.randint(3, (), generator=shared))]
        power = int(torch.randint(2, 18, (), generator=shared))
        words = int(torch.randint(1, 1 << (power - 1), (), generator=shared))
        factor = int(torch.randint(1, 9, (), generator=shared))
        these = parts[dtype][:, : 4 * words // dtype.itemsize] * factor
        if not torch.randint(20, (), generator=own):
            torch.cuda._sleep(int(torch.randint(100_000, (), generator=own)))
        wrong += (reduce(these[index].clone()) != summed(these)).any()
    peers.finish()
    return int(wrong)


@pytest.mark.parametrize("ranks", SIZES)
def test_thousands_of_calls(ranks: int) -> None:
    assert act_together(opened, partial(many_calls, ranks=ranks), ranks) == [0] * ranks


def captured(peers: Peers, index: int) -> list[str]:
    """A chain of sums of different sizes as one graph, replayed on new inputs, against the same launched."""
    reduce = Reducing(peers)
    x = torch.zeros(64, 4096, device="cuda", dtype=torch.bfloat16)

    def chain() -> Tensor:
        y = x
        for rows in (64, 1, 16, 1, 1, 2, 64):
            head = reduce(y[:rows] * 0.25, x[:rows])
            y = torch.cat([head, y[rows:]])
        return y

    chain()
    peers.finish()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain()
    problems = []
    for turn in range(300):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(10 * turn + index)))
        wanted = chain().clone()
        for _ in range(1 + turn % 3):
            graph.replay()
        peers.finish()
        problems += [] if torch.equal(out, wanted) else [f"turn {turn}"]
    return problems


@pytest.mark.parametrize("ranks", SIZES)
def test_graphs_hold_sums(ranks: int) -> None:
    assert act_together(opened, captured, ranks) == [[]] * ranks


def beside_other_collectives(peers: Peers, _index: int) -> int:
    """The communicator's own sums go on beside these."""
    reduce, ones = Reducing(peers), torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    wrong = torch.zeros((), device="cuda")
    for _ in range(200):
        for out in (reduce(ones), peers.all_reduce(ones), reduce(ones[:16]), peers.all_reduce(ones[:8])):
            wrong += (out != 2).any()
        wrong += (peers.all_gather(ones[:8]) != 1).any()
    peers.finish()
    return int(wrong)


def test_other_collectives_go_on_beside_them() -> None:
    assert act_together(opened, beside_other_collectives) == [0, 0]


def one_stays_away(peers: Peers, index: int) -> str:
    reduce, ones = Reducing(peers), torch.ones(4096, device="cuda")
    reduce(ones)
    peers.finish()
    if index == 0:
        reduce(ones)
        peers.finish()
    return "away"


def test_a_timeout_names_the_rank_that_is_missing() -> None:
    waiting, _ = act_together(opened, one_stays_away, timeout_s=10)
    assert waiting.startswith("rank 0: waiting for the device in group test: no answer from rank 1 (")
