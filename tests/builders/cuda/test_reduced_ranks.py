"""Two tensor parallel ranks whose programs launch kernels, sums over ranks among them, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Lock

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from builders.checkpoint import rank_tensors, read_manifest
from builders.constants import rank_constants
from builders.cuda.engine import CudaEngine
from builders.cuda.example import ANY
from builders.cuda.launch import Launch
from builders.cuda.site import sites_of
from builders.cuda.table import KERNELS
from builders.cuda.target import Target
from builders.cuda.unit import KernelPlan, candidates, sources_of
from builders.engine import Engine, TorchEngine
from builders.export import export_rank
from builders.kernels.call import Call, Runner
from builders.kernels.reduce import MOST_BLOCKS
from builders.keys import Recipe
from builders.limits import Limits
from builders.mapping import Mapping, rank_shape
from builders.ops import Communicator, Step, tensor_parallel
from builders.sources.hf import open_folder
from tests.beyond import spec_of
from tests.builders.kernels.peers import buffers_of
from tests.convert_tools import convert_opened
from tests.cuda_ranks import (
    On,
    following,
    fused_programs,
    interpreted_piece,
    new_caches,
    pieces,
    prompts,
    with_kernels,
)
from tests.oracle import gpt2, llama, mixtral, random_model
from tests.sim import BLOCK, Member, ThreadGroup

LIMITS = Limits(max_batch_size=3, max_input_len=16, max_seq_len=32, max_num_tokens=48, tokens_per_block=BLOCK)
RANKS = 2
SPLIT = Mapping(tp_size=RANKS, embedding_split="vocab")


class Halves:
    """Executes a rank's launches in a thread; sums over ranks half by half, all ranks' first halves first."""

    def __init__(self, run: Runner, lock: Lock, all_pushed: Barrier) -> None:
        self._run, self._lock, self._all_pushed = run, lock, all_pushed
        self.sums = 0

    def __call__(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if call.kernel != "reduce.all_reduce":
                self._alone(call)
                continue
            self._alone(_half(call, "PUSH"))
            self._all_pushed.wait()
            self._alone(_half(call, "TAKE"))
            self.sums += 1

    def _alone(self, call: Call) -> None:
        """Inboxes travel to the interpreter and back: one at a time."""
        with self._lock:
            self._run([call])


def _half(call: Call, name: str) -> Call:
    constants = {**dict(call.constants), "PUSH": name == "PUSH", "TAKE": name == "TAKE"}
    return replace(call, constants=tuple(sorted(constants.items())))


class OnlyGathers:
    """A communicator whose sums are somebody else's."""

    def __init__(self, member: Member) -> None:
        self.all_gather = member.all_gather

    def all_reduce(self, x: Tensor) -> Tensor:
        raise AssertionError(f"a sum of {tuple(x.shape)} through the communicator")


def engines(out: Path, rank: int, runner: Runner) -> tuple[CudaEngine, TorchEngine]:
    """One rank with kernels, and as PyTorch runs it."""
    manifest = read_manifest(out)
    spec, mapping = manifest.spec, manifest.mapping
    shape = rank_shape(spec, mapping, rank)
    tensors = rank_tensors(out, manifest, rank) | rank_constants(spec, mapping, rank)
    graphs = export_rank(spec, mapping, rank, torch.float32, BLOCK)
    blocks = LIMITS.max_batch_size * (LIMITS.max_seq_len // BLOCK) + 1
    size = (blocks, BLOCK, shape.num_kv_heads, spec.head_dim)
    caches = [new_caches(size, len(shape.layers), torch.float32, "cpu") for _ in range(2)]
    plain = TorchEngine(pieces(graphs, interpreted_piece), 0, dict(tensors), caches[0])
    return with_kernels(graphs, dict(tensors), caches[1], LIMITS, On(run=runner), None), plain


def forward(ranks: list[Engine], links: list[Communicator], ids: Tensor, step: Step) -> list[Tensor]:
    """What every rank says."""

    @torch.no_grad()
    def one(engine: Engine, link: Communicator) -> Tensor:
        with tensor_parallel(link):
            return engine.forward(ids, step).clone()

    with ThreadPoolExecutor(RANKS) as threads:
        return list(threads.map(one, ranks, links))


@pytest.mark.parametrize("config", [llama(), gpt2(), mixtral()], ids=lambda config: config.model_type)
def test_kernels_sum_as_the_communicator_does(config: PreTrainedConfig, run: Runner, tmp_path: Path) -> None:
    random_model(config).save_pretrained(tmp_path / "model")
    out = convert_opened(open_folder(tmp_path / "model"), SPLIT, tmp_path / "out")
    lock, all_pushed = Lock(), Barrier(RANKS, timeout=120)
    runners = [Halves(run, lock, all_pushed) for _ in range(RANKS)]
    pairs = [engines(out, rank, runner) for rank, runner in enumerate(runners)]
    ours, plain = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for engine, buffers in zip(ours, buffers_of(RANKS, blocks=16), strict=True):
        engine.join(buffers)
    group = ThreadGroup(RANKS)
    members = [group.member(rank) for rank in range(RANKS)]
    ids, step = torch.randint(0, 90, (13,)), prompts([5, 1, 7], LIMITS)
    for _ in range(3):
        found = forward(list(ours), list(map(OnlyGathers, members)), ids, step)
        wanted = forward(list(plain), list(members), ids, step)
        torch.testing.assert_close(found[0], wanted[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(found[0], found[1])
        ids, step = wanted[0].argmax(-1), following(step)
    layers = read_manifest(out).spec.num_layers
    assert [runner.sums for runner in runners] == [3 * (2 * layers + 1)] * RANKS


@pytest.mark.parametrize(
    ("x", "peers", "takes"),
    [
        (torch.zeros(2, 64), True, True),
        (torch.zeros(2, 64), False, False),
        (torch.zeros(2, 64, dtype=torch.float64), True, False),
        (torch.zeros(2, 65), True, False),  # beyond the buffers
        (torch.zeros(1, 3, dtype=torch.float16), True, False),  # half a word
        (torch.zeros(0, 64), True, False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else f"{value.dtype} {tuple(value.shape)}",
)
def test_what_the_kernel_takes(x: Tensor, peers: bool, takes: bool) -> None:
    """Everything else goes through the communicator."""
    launch = Launch(peers=buffers_of(RANKS, blocks=1)[0] if peers else None)
    assert KERNELS["fused.all_reduce"].takes([x, RANKS, None], launch) == takes


@pytest.mark.parametrize("overlap", [False, True])
def test_engines_hold_the_kernels_that_ranks_launch(overlap: bool) -> None:
    """Whatever the rank and the number of rows, a launch asks for the kernel that was compiled."""
    graphs = export_rank(spec_of("llama2-gqa"), SPLIT, 0, torch.bfloat16, BLOCK)
    target, kernel = Target(capability=90 if overlap else 80, device=None), KERNELS["fused.all_reduce"]
    found = set()
    for program in fused_programs(graphs):
        for site in sites_of(program, {"fused.all_reduce": kernel}).values():
            plan = KernelPlan(site=site, rows=ANY, limits=LIMITS, target=target, recipe=Recipe("test", {}))
            (config,) = candidates(site, ANY, LIMITS, target)
            x = torch.empty(3, 48, dtype=torch.bfloat16)
            args = [x, RANKS, x if site.given(2) else None]
            peers = buffers_of(RANKS, MOST_BLOCKS)[1]
            (call,) = kernel.calls(config, args, kernel.output(args), Launch(peers=peers))
            assert sources_of(plan, config) == [call.source]
            found.add((site.given(2), call.source.overlap))
    assert found == {(False, overlap), (True, overlap)}
