"""A rank whose engine keeps a table, and begins and ends decoding by itself, as on a GPU but without one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors import rank_worker
from actors.communicators.rendezvous import host_store
from actors.generator import Pace
from actors.open_generator import GeneratorOptions, open_generator
from actors.rank_worker import Meeting, RankSetup, RankWorker
from builders.checkpoint import rank_tensors
from builders.constants import rank_constants
from builders.cuda.engine import CudaEngine
from builders.engine import TorchEngine
from builders.engine_folder import load_engine, new_caches
from builders.engine_manifest import TorchManifest, read_engine
from builders.export import export_rank
from builders.kernels.call import Runner
from builders.kernels.likeliest import LIKELIEST_CONFIG
from builders.limits import Limits
from builders.mapping import Mapping
from builders.ops import Step
from tests.actors.engines import small
from tests.actors.scenario import LIMITS, NUM_BLOCKS, Scenario
from tests.actors.subjects import Subject
from tests.actors.wishes import Wish, prompt_of, wish_of
from tests.builders.kernels.conftest import run
from tests.cuda_ranks import On, with_kernels

__all__ = ["run"]


def company(model: PreTrainedModel) -> Iterator[Wish]:
    """First only such as the end of a decoding step sees to by itself; the interpreter is slow."""
    yield wish_of(model, "first", prompt_of(2, 3), 0, max_tokens=7)
    yield wish_of(model, "twins", prompt_of(5, 5), 1, max_tokens=4, n=2)
    yield wish_of(model, "beams", prompt_of(8, 4), 3, max_tokens=3, num_beams=2)
    yield wish_of(model, "draw", prompt_of(7, 2), 5, max_tokens=3, temperature=0.8, seed=5)


def loaded(folder: Path, rank: int, num_blocks: int, run: Runner) -> CudaEngine:
    manifest = read_engine(folder)
    assert isinstance(manifest, TorchManifest)
    checkpoint, limits = manifest.checkpoint, manifest.limits
    spec, mapping = checkpoint.spec, checkpoint.mapping
    tensors = {**rank_tensors(folder, checkpoint, rank), **rank_constants(spec, mapping, rank)}
    dtype = next(iter(tensors.values())).dtype
    graphs = export_rank(spec, mapping, rank, dtype, limits.tokens_per_block)
    caches = new_caches(manifest, rank, num_blocks + 1)
    engine = with_kernels(graphs, tensors, caches, limits, On(run=run), limits.max_sequences)
    engine.draws, engine.finding = True, LIKELIEST_CONFIG
    return engine


def prepare(self: CudaEngine, *, before: Any, after: Any) -> None:
    """Without graphs."""
    self._before, self._after = before, after


class Tabled(CudaEngine):
    """Where kernels take too long: the table, and what comes before and after, around plain programs."""

    draws, finding = False, None

    def __init__(self, plain: TorchEngine, limits: Limits) -> None:
        self._plain, self._device, self._nobody = plain, "cpu", limits.max_sequences
        blocks = -(-limits.max_seq_len // limits.tokens_per_block)
        self._rows = torch.full((self._nobody + 1, blocks), 10**6)
        self._programs, self._graphs = plain, {}

    table = property(lambda self: self._rows)
    prepare = prepare  # type: ignore[assignment]

    def forward(self, x: Tensor, step: Step) -> Tensor:
        rows, sequences = torch.unique_consecutive(step.sequences, return_inverse=True)
        return self._plain.forward(x, replace(step, sequences=sequences, block_table=self._rows[rows]))

    def decode(self, step: Step, x: Tensor | None = None) -> Tensor:
        assert x is None and self._before and self._after, "one stage"
        out = self.forward(self._before(step.sequences), step)
        padding = self._nobody - len(out)
        rows = torch.nn.functional.pad(step.sequences, (0, padding), value=self._nobody)
        self._after(torch.nn.functional.pad(out, (0, 0, 0, padding)), rows)
        return out


@pytest.mark.parametrize("draft_tokens", [0, 3])
@pytest.mark.parametrize("name", ["llama2-gqa", "gpt2"])
def test_everyone_gets_what_transformers_gives(
    name: str,
    draft_tokens: int,
    subjects: Callable[[str], Subject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(folder: Path, rank: int, *, num_blocks: int, device: str | None) -> CudaEngine:
        plain = load_engine(folder, rank, num_blocks=num_blocks)
        assert isinstance(plain, TorchEngine)
        return Tabled(plain, LIMITS)

    monkeypatch.setattr(rank_worker, "load_engine", load)
    subject = subjects(name)
    folder = subject.engine(Mapping(), tmp_path / "engine")
    with open_generator(
        folder, GeneratorOptions(num_blocks=NUM_BLOCKS, draft_tokens=draft_tokens)
    ) as generator:
        generator._pace = Pace(steps=2, fed=False)
        scenario = Scenario(generator, subject.wishes)
        scenario.run()
    scenario.check(subject.model)
    scenario.check_variety()


def test_kernels(
    run: Runner, subjects: Callable[[str], Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path, rank: int, *, num_blocks: int, device: str | None) -> CudaEngine:
        return loaded(folder, rank, num_blocks, run)

    monkeypatch.setattr(rank_worker, "load_engine", load)
    monkeypatch.setattr(CudaEngine, "prepare", prepare)
    subject = subjects("llama2-gqa")
    folder = subject.engine(Mapping(), tmp_path / "engine")
    with open_generator(folder, GeneratorOptions(num_blocks=20)) as generator:
        scenario = Scenario(generator, [*company(subject.model)])
        scenario.run()
    scenario.check(subject.model)
    decoding = [bool(plan.beams) for plan in scenario.plans if plan.decode and not plan.chunks]
    assert {*decoding} == {False, True}, "there are steps for graphs, some of which search"


class Drawing(Tabled):
    """What chooses tokens calls the engine, which calls what chooses tokens."""

    draws, finding = True, LIKELIEST_CONFIG

    def likeliest(self, scores: Tensor) -> Tensor:
        return scores.argmax(-1)

    def draw(self, scores: Tensor, slots: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros_like(slots)


def test_a_closed_rank_has_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is free at once, not when somebody looks for cycles."""
    engines = loads(monkeypatch, Drawing)
    folder = small(tmp_path, Mapping())
    gc.disable()
    try:
        open_generator(folder, GeneratorOptions(num_blocks=NUM_BLOCKS)).close()
        assert [engine() for engine in engines] == [None]
    finally:
        gc.enable()


def test_ranks_of_a_stage_tell_alike_what_is_a_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the last stage's two chooses tokens; both have graphs for what `decode` is given alone."""
    mapping = Mapping(tp_size=2, pp_size=2)
    engines = loads(monkeypatch, Tabled)
    folder, store = small(tmp_path, mapping), host_store("127.0.0.1", 60)
    meeting = Meeting(kind="gloo", store=("127.0.0.1", store.port), wait_s=60, start_s=60)

    def worker(rank: int) -> RankWorker:
        return RankWorker(RankSetup(engine_dir=folder, rank=rank, num_blocks=NUM_BLOCKS, meeting=meeting))

    with ThreadPoolExecutor(mapping.world_size) as threads:
        workers = list(threads.map(worker, range(mapping.world_size)))
    hooked = [bool(engine()._before or engine()._after) for engine in engines]
    assert hooked == [True] * 4
    for one in workers:
        one.close()


def loads(monkeypatch: pytest.MonkeyPatch, kind: type[Tabled]) -> list[Any]:
    """Have ranks load such engines, of which they hold the only references."""
    engines: list[Any] = []

    def load(folder: Path, rank: int, *, num_blocks: int, device: str | None) -> CudaEngine:
        plain = load_engine(folder, rank, num_blocks=num_blocks)
        assert isinstance(plain, TorchEngine)
        engines.append(weakref.ref(found := kind(plain, LIMITS)))
        return found

    monkeypatch.setattr(rank_worker, "load_engine", load)
    return engines
