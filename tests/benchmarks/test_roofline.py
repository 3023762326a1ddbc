"""The least bytes and products of steps: what files and caches hold, and what PyTorch counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.roofline import Rates, Roofline, decode_flops, measured_rates, prefill_flops, weight_bytes
from builders.checkpoint import read_manifest
from builders.engine_folder import new_caches
from builders.engine_manifest import TorchManifest, read_engine
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.builders.test_engine import build
from tests.convert_tools import convert_opened
from tests.oracle import gpt2, llama, mixtral, random_model

VOCAB = 256
"""Needs no padding, which Transformers would not multiply with."""

LAYOUTS = [Mapping(), Mapping(tp_size=2), Mapping(tp_size=2, pp_size=3)]


def checkpoint(folder: Path, config: PreTrainedConfig, mapping: Mapping) -> Path:
    random_model(config).save_pretrained(folder / "model")
    return convert_opened(open_folder(folder / "model"), mapping, folder / "checkpoint")


def stored_bytes(folder: Path, rank: int, *left_out: str) -> int:
    tensors = load_file(folder / f"rank{rank}.safetensors")
    return sum(tensor.nbytes for name, tensor in tensors.items() if name not in left_out)


@pytest.mark.parametrize("mapping", LAYOUTS, ids=str)
def test_a_step_reads_a_dense_rank_but_its_table_of_embeddings(mapping: Mapping, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, llama(), mapping)
    for rank in range(mapping.world_size):
        assert weight_bytes(read_manifest(folder), rank, 1) == stored_bytes(folder, rank, "embed.weight")


def test_a_tied_table_is_read_as_the_head(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, gpt2(), Mapping())
    assert weight_bytes(read_manifest(folder), 0, 1) == stored_bytes(folder, 0, "positions.weight")


def test_a_step_reads_the_experts_that_are_chosen(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, mixtral(), Mapping(tp_size=2, ep_size=2))
    manifest, tensors = read_manifest(folder), load_file(folder / "rank1.safetensors")
    experts = sum(one.nbytes for name, one in tensors.items() if ".moe." in name and "router" not in name)
    rest = stored_bytes(folder, 1, "embed.weight") - experts
    assert weight_bytes(manifest, 1, 1) == rest + experts * 2 / 4
    assert weight_bytes(manifest, 1, 2) == rest + experts * 3 / 4
    assert weight_bytes(manifest, 1, 1000) == rest + experts


def test_a_decoding_step_reads_weights_and_the_cache_of_every_stage_in_turn(tmp_path: Path) -> None:
    folder = build(checkpoint(tmp_path, llama(), Mapping(tp_size=2, pp_size=2)), compiled=False)
    manifest = read_engine(folder)
    assert isinstance(manifest, TorchManifest), "built for torch"
    found = Roofline(
        manifest=manifest.checkpoint, rates=Rates(read_bytes_per_s=1.0, flops_per_s=1e30)
    ).decode_s(batch=6, context=5 * manifest.limits.tokens_per_block)
    per_stage = 3
    caches = [new_caches(manifest, rank, num_blocks=5 * per_stage) for rank in (0, 2)]
    cached = sum(cache.k.nbytes + cache.v.nbytes for stage in caches for cache in stage)
    weights = stored_bytes(folder, 0, "embed.weight") + stored_bytes(folder, 2)
    assert found == pytest.approx(weights + cached)


@pytest.mark.parametrize("config", [llama, mixtral])
@pytest.mark.parametrize("context", [1, 9])
def test_products_of_a_token_are_those_that_pytorch_counts(
    config: Callable[..., PreTrainedConfig], context: int, tmp_path: Path
) -> None:
    manifest = read_manifest(checkpoint(tmp_path, config(vocab_size=VOCAB), Mapping()))
    model = random_model(config(vocab_size=VOCAB))
    assert decode_flops(manifest, 0, 1, context) == counted(model, context)
    assert decode_flops(manifest, 0, 7, context) == 7 * counted(model, context)


@torch.no_grad()
def counted(model: PreTrainedModel, context: int) -> int:
    """Of the last of so many tokens; kernels of its own would hide products from PyTorch."""
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    ids = torch.arange(context).unsqueeze(0)
    past = model(ids[:, :-1]).past_key_values if context > 1 else None
    with FlopCounterMode(display=False) as counter:
        model(ids[:, -1:], past_key_values=past)
    return counter.get_total_flops()


@pytest.mark.parametrize("mapping", LAYOUTS, ids=str)
def test_a_prompt_is_its_tokens_but_one_head(mapping: Mapping, tmp_path: Path) -> None:
    manifest = read_manifest(checkpoint(tmp_path, llama(), mapping))
    for rank in range(mapping.world_size):
        tokens = [decode_flops(manifest, rank, 1, context) for context in range(1, 12)]
        heads = weight_bytes_of_head(tmp_path / "checkpoint", rank) / 4 * 2
        assert prefill_flops(manifest, rank, 3, 11) == 3 * (sum(tokens) - 10 * heads)


def weight_bytes_of_head(folder: Path, rank: int) -> int:
    head = load_file(folder / f"rank{rank}.safetensors").get("head.weight")
    return 0 if head is None else head.nbytes


def test_prompts_take_their_products_or_the_weights_once_a_step(tmp_path: Path) -> None:
    manifest = read_manifest(checkpoint(tmp_path, llama(), Mapping()))
    reading = Roofline(manifest=manifest, rates=Rates(read_bytes_per_s=1.0, flops_per_s=1e30))
    assert reading.prefill_s(4, 8, steps=3) == 3 * weight_bytes(manifest, 0, 1)
    multiplying = Roofline(manifest=manifest, rates=Rates(read_bytes_per_s=1e30, flops_per_s=1.0))
    assert multiplying.prefill_s(4, 8, steps=3) == prefill_flops(manifest, 0, 4, 8)


def test_rates_are_those_of_this_machine() -> None:
    rates = measured_rates("cpu", torch.float32)
    assert 1e7 < rates.read_bytes_per_s < 1e13
    assert 1e7 < rates.flops_per_s < 1e16
