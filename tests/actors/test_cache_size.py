"""How many blocks there is room for, and what ends a text where an engine is opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from actors import cache_size
from actors.cache_size import HEADROOM_BYTES, HOST_SHARE, cache_limits, num_blocks
from actors.open_generator import ends_of
from builders.engine_folder import new_caches
from builders.engine_manifest import TorchManifest, TrtManifest, read_engine
from builders.errors import EngineError
from builders.mapping import Mapping
from builders.memory import activation_bytes
from tests.actors.engines import engine
from tests.builders.test_engine import LIMITS
from tests.tiny import save_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two stages, the first with two of three layers."""
    return engine(save_llama(tmp_path / "model"), Mapping(pp_size=2), tmp_path / "engine")


def manifest_of(folder: Path) -> TorchManifest:
    manifest = read_engine(folder)
    assert isinstance(manifest, TorchManifest)
    return manifest


def test_caches_fill_what_is_left(folder: Path) -> None:
    """To the last block, where one rank has most of everything."""
    manifest, share, spare = manifest_of(folder), 0.75, 20 << 20
    found = num_blocks(manifest, HEADROOM_BYTES + spare, share)
    ranks = (sizes_of(folder, rank, found) for rank in (0, 1))
    weights, steps, caches = (max(sizes) for sizes in zip(*ranks, strict=True))
    left = share * (spare - weights - steps)
    assert caches <= left < caches + caches / found


def sizes_of(folder: Path, rank: int, blocks: int) -> tuple[int, int, int]:
    """Bytes of weights, of the largest step, of a cache."""
    manifest = manifest_of(folder)
    weights = load_file(folder / f"rank{rank}.safetensors").values()
    caches = new_caches(manifest, rank, blocks)
    step = activation_bytes(manifest.checkpoint, rank, manifest.limits)
    return sum(x.nbytes for x in weights), step, sum(cache.k.nbytes + cache.v.nbytes for cache in caches)


def test_a_device_without_room_for_one_sequence(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"^2\.0 GiB free on the device: too little for one sequence of 64"):
        num_blocks(manifest_of(folder), HEADROOM_BYTES + 1000, 0.9)


def test_a_host_has_room_for_every_batch_twice(folder: Path) -> None:
    """As far as its memory goes, which it does here."""
    manifest = manifest_of(folder)
    assert num_blocks(manifest, None, 0.9) == 2 * LIMITS.max_batch_size * 16
    long = replace(manifest, limits=replace(LIMITS, max_seq_len=10**9))
    assert 0 < num_blocks(long, None, 0.9) < 10**9


def test_ranks_share_a_hosts_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, free = manifest_of(folder), 150_000
    monkeypatch.setattr(cache_size, "_host_bytes", lambda: free)
    blocks = num_blocks(manifest, None, 0.9)
    caches = [sizes_of(folder, rank, blocks)[2] for rank in (0, 1)]
    assert HOST_SHARE * free / 2 < sum(caches) <= HOST_SHARE * free


def test_a_cache_that_does_not_fit(folder: Path) -> None:
    with pytest.raises(
        EngineError, match=r"^rank 0: a cache of \d+ blocks takes [\d.]+ GiB, more than cpu has"
    ):
        new_caches(manifest_of(folder), 0, 2**40)


def test_a_tensorrt_engines_blocks_are_its_slots(folder: Path) -> None:
    manifest, limits = manifest_of(folder), replace(LIMITS, max_beam_width=2)
    lowered = TrtManifest(
        checkpoint=manifest.checkpoint,
        limits=limits,
        target="sm89",
        versions={},
        units=(),
        ranks=(),
        library="tensorrt_rtx",
        stripped=True,
    )
    assert num_blocks(lowered, 1, 0.9) == limits.max_sequences
    assert cache_limits(lowered) == replace(limits, tokens_per_block=limits.max_seq_len)
    assert cache_limits(manifest) == manifest.limits


SETTINGS = [
    ({"eos_token_id": 7}, (7,)),
    ({"eos_token_id": [7, 9]}, (7, 9)),
    ({"eos_token_id": 0}, (0,)),
    ({"eos_token_id": None}, (3,)),
    ({"temperature": 0.5}, (3,)),
    (None, (3,)),
]


@pytest.mark.parametrize(("settings", "ends"), SETTINGS)
@pytest.mark.parametrize("token", ["<end>", {"content": "<end>", "special": True}], ids=["text", "object"])
def test_what_ends_a_text(settings: Any, ends: tuple[int, ...], token: Any, tmp_path: Path) -> None:
    """The model's settings come before its tokenizer's."""
    if settings is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    save_tokenizer(tmp_path, {"eos_token": token})
    assert ends_of(tmp_path) == ends


@pytest.mark.parametrize("settings", [{}, {"eos_token": None}, {"eos_token": "<unknown>"}])
def test_texts_without_an_end(settings: Any, tmp_path: Path) -> None:
    assert ends_of(tmp_path) == ()
    save_tokenizer(tmp_path, settings)
    assert ends_of(tmp_path) == ()


def save_tokenizer(engine: Path, settings: Any) -> None:
    folder = engine / "tokenizer"
    folder.mkdir()
    Tokenizer(WordLevel({"a": 0, "b": 1, "<end>": 3}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
