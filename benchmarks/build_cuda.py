"""The CUDA half of `benchmarks/build.py`: an 8B Llama's weights, its load, and its decoding steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
BATCHES = (
    (1, 256),
    (2, 256),
    (4, 256),
    (8, 256),
    (16, 256),
    (32, 256),
    (64, 640),
    (64, 1500),
    (128, 640),
    (256, 640),
)
"""Sequences, and tokens of each in the cache."""
NUM_BLOCKS = max(batch * -(-context // 32) for batch, context in BATCHES)
PROMPTS = (512, 4096, 8192)
"""Tokens of a step that are prompts of 512 each."""
REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What a rank does, beside what its device can."""

    read_bytes_per_s: float
    weight_bytes: int
    """That a decoding step reads."""
    decoding: tuple[tuple[int, int, float], ...]
    """Batch, context, seconds."""
    prompts: tuple[tuple[int, float], ...]
    """Tokens, seconds."""
    prepare_s: float


def load_and_step(engine: Path) -> tuple[float, float, float]:
    """One token of one sequence, twice."""
    import torch

    from builders.engine_folder import load_engine

    torch.zeros(1, device="cuda")  # the device's own start is not the engine's
    began = time.perf_counter()
    rank = load_engine(engine, 0, num_blocks=64)
    torch.cuda.synchronize()
    loaded = time.perf_counter()
    ids, step = decoding_step(1, 64)
    rank.forward(ids, step).cpu()
    first = time.perf_counter()
    rank.forward(ids, step).cpu()
    return loaded - began, first - loaded, time.perf_counter() - first


def decoding_step(batch: int, context: int) -> tuple[Any, Any]:
    """The next token of every sequence."""
    import torch

    from builders.ops import Step

    rows, table = torch.arange(batch), -(-context // 32)
    step = Step(
        positions=torch.full((batch,), context - 1),
        sequences=rows,
        lengths=torch.full((batch,), context),
        block_table=torch.arange(batch * table).view(batch, table),
        wanted=rows,
    )
    return torch.randint(0, 128000, (batch,)), step


def prompt_step(tokens: int, each: int = 512) -> tuple[Any, Any]:
    """Whole prompts."""
    import torch

    from builders.ops import Step

    batch, table = tokens // each, each // 32
    step = Step(
        positions=torch.arange(each).repeat(batch),
        sequences=torch.arange(batch).repeat_interleave(each),
        lengths=torch.full((batch,), each),
        block_table=torch.arange(batch * table).view(batch, table),
        wanted=torch.arange(batch) * each + each - 1,
    )
    return torch.randint(0, 128000, (tokens,)), step


def mixed_step(batch: int, context: int, tokens: int) -> tuple[Any, Any]:
    """The next token of every sequence, beside whole prompts."""
    import torch
    from torch.nn.functional import pad

    from builders.ops import Step

    (ids, decoding), (prompt_ids, prompts) = decoding_step(batch, context), prompt_step(tokens)
    tables = (decoding.block_table, prompts.block_table + decoding.block_table.numel())
    width = max(table.shape[1] for table in tables)
    step = Step(
        positions=torch.cat([decoding.positions, prompts.positions]),
        sequences=torch.cat([decoding.sequences, prompts.sequences + batch]),
        lengths=torch.cat([decoding.lengths, prompts.lengths]),
        block_table=torch.cat([pad(table, (0, width - table.shape[1])) for table in tables]),
        wanted=torch.cat([decoding.wanted, prompts.wanted + batch]),
    )
    return torch.cat([ids, prompt_ids]), step


def measure_steps(engine: Path) -> Steps:
    """Decoding by graphs, prompts launch by launch."""
    import torch

    from builders.cuda.engine import CudaEngine
    from builders.engine_folder import load_engine

    read = _read_bandwidth()
    rank = load_engine(engine, 0, num_blocks=NUM_BLOCKS)
    assert isinstance(rank, CudaEngine), "built for a CUDA device"
    began = time.perf_counter()
    rank.prepare()
    torch.cuda.synchronize()
    prepare_s = time.perf_counter() - began
    decoding = tuple(
        (batch, context, _seconds(rank, *decoding_step(batch, context))) for batch, context in BATCHES
    )
    prompts = tuple((tokens, _seconds(rank, *prompt_step(tokens))) for tokens in PROMPTS)
    table = CONFIG["vocab_size"] * CONFIG["hidden_size"] * 2  # type: ignore[operator]
    return Steps(
        read_bytes_per_s=read,
        weight_bytes=(engine / "rank0.safetensors").stat().st_size - table,
        decoding=decoding,
        prompts=prompts,
        prepare_s=prepare_s,
    )


def _seconds(rank: Any, ids: Any, step: Any) -> float:
    """Of one step, its inputs copied and its launches made."""
    import torch

    ids = ids.cuda()
    for _ in range(3):
        rank.forward(ids, step)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        rank.forward(ids, step)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / REPEATS


def _read_bandwidth() -> float:
    """Bytes a second that a reduction of four gigabytes reads."""
    import torch

    big = torch.zeros(1 << 30, device="cuda")
    big.amax()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        big.amax()
    torch.cuda.synchronize()
    return REPEATS * big.nbytes / (time.perf_counter() - began)


def print_steps(steps: Steps) -> None:
    """The table."""
    limit = steps.weight_bytes / steps.read_bytes_per_s
    print(
        f"\nsteps of the deepest engine: {steps.weight_bytes:,} bytes of weights at "
        f"{steps.read_bytes_per_s / 1e12:.2f} TB/s take {limit * 1e3:.2f} ms; graphs captured in "
        f"{steps.prepare_s:.2f} s\n"
    )
    print("| step | time | tokens/s | weights at read speed, of the time |")
    print("| --- | --- | --- | --- |")
    for batch, context, seconds in steps.decoding:
        print(
            f"| decode {batch}, context {context} | {seconds * 1e3:.2f} ms | {batch / seconds:,.0f} "
            f"| {limit / seconds:.0%} |"
        )
    for tokens, seconds in steps.prompts:
        print(f"| prompts, {tokens} tokens | {seconds * 1e3:.1f} ms | {tokens / seconds:,.0f} | |")
