"""Ranks without Ray, as plain processes: on CPUs with gloo, on GPUs with NCCL and symmetric memory."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.communicators.links import Kind
from actors.communicators.rendezvous import host_store
from actors.communicators.symmetric import ENVIRONMENT
from actors.rank_worker import RankSetup, RankWorker
from actors.step_messages import order_of, tokens_of
from builders.mapping import Mapping
from tests.actors.engines import NEW_TOKENS, NUM_BLOCKS, PROMPTS, decode, engine, oracle, prefill
from tests.cluster.test_build import make
from tests.cluster.test_convert import go

LIMITS = {"max_batch_size": 4, "max_input_len": 16, "max_seq_len": 160, "tokens_per_block": 16}
"""As many blocks a sequence as `block_table` gives each of the prompts."""
HERE = "127.0.0.1"

on_gpus = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
LAYOUTS = {
    "tp2": Mapping(tp_size=2),
    "pp2": Mapping(pp_size=2),
    "ep2": Mapping(tp_size=2, ep_size=2),
    "tp2pp2": Mapping(tp_size=2, pp_size=2),
    "tp4": Mapping(tp_size=4),
}


def gpu_engine(model: Path, mapping: Mapping, folder: Path) -> Path:
    """Kernels chosen on the device at hand; in float32, so that greedy tokens are the oracle's."""
    sizes = {"tp_size": mapping.tp_size, "pp_size": mapping.pp_size, "ep_size": mapping.ep_size}
    go(model, folder / "checkpoint", dtype="float32", **sizes)
    make(folder / "checkpoint", folder / "engine", no_compile=False, target="cuda", **LIMITS)
    return folder / "engine"


def run_rank(setup: RankSetup, on_gpu: bool, pipe: Connection) -> None:
    """Its part of all steps; the tokens of those of the last stage's first rank."""
    torch.set_num_threads(1)
    device = f"cuda:{setup.rank}" if on_gpu else None
    if device:
        torch.cuda.set_device(device)
    worker = RankWorker(setup, host=HERE, device=device)
    while (order := pipe.recv()) is not None:
        answer = worker.obey(order)
        pipe.send(tokens_of(answer) if answer else None)
    worker.close()


class Ranks:
    """A process for each; every step is answered by all, so that none is ahead."""

    def __init__(self, folder: Path, kind: Kind, world: int) -> None:
        self._store = host_store(HERE, 120)
        self._pipes = [self._started(folder, kind, rank) for rank in range(world)]

    def _started(self, folder: Path, kind: Kind, rank: int) -> Connection:
        setup = RankSetup(
            engine_dir=folder,
            rank=rank,
            num_blocks=NUM_BLOCKS,
            kind=kind,
            store=(HERE, self._store.port),
            wait_s=60,
            start_s=120,
            beat_s=1,
        )
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        context.Process(target=run_rank, args=(setup, kind != "gloo", theirs), daemon=True).start()
        theirs.close()
        return ours

    def step(self, order: Any) -> list[int]:
        for pipe in self._pipes:
            pipe.send(order)
        found = [_heard(pipe) for pipe in self._pipes]
        (tokens,) = [tokens for tokens in found if tokens is not None]
        return tokens  # type: ignore[no-any-return]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)


def _heard(pipe: Connection) -> Any:
    assert wait([pipe], timeout=200), "a rank neither answers nor dies"
    return pipe.recv()


def greedy(ranks: Ranks) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in PROMPTS]
    ids, step = prefill(PROMPTS)
    for number in range(1, NEW_TOKENS + 1):
        tokens = ranks.step(order_of(number, ids, step, "tokens"))
        for row, token in zip(found, tokens, strict=True):
            row.append(token)
        ids, step = decode(tokens, [len(prompt) + number for prompt in PROMPTS])
    return found


CASES = [
    pytest.param("gloo", "tp2", id="gloo-tp2"),  # tests/actors/on_ray has the other layouts
    *(
        pytest.param(kind, layout, marks=on_gpus, id=f"{kind}-{layout}")
        for kind in ("nccl", "symmetric")
        for layout in LAYOUTS
    ),
]


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_greedy_tokens_are_those_of_transformers(
    kind: Kind, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapping = LAYOUTS[layout]
    if kind != "gloo" and mapping.world_size > torch.cuda.device_count():
        pytest.skip(f"needs {mapping.world_size} CUDA devices")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    wanted = oracle("mixtral" if layout == "ep2" else "llama2-gqa", tmp_path / "model")
    made = engine if kind == "gloo" else gpu_engine
    ranks = Ranks(made(wanted.folder, mapping, tmp_path / "made"), kind, mapping.world_size)
    assert greedy(ranks) == wanted.greedy
    ranks.close()
