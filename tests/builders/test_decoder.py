"""However tokens are packed into steps, the logits are those of each text by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from builders.checkpoint import load_rank
from builders.decoder import Decoder, empty_decoder
from builders.families import from_transformers
from builders.mapping import Mapping
from builders.ops import LayerCache, Step
from tests.builders.test_checkpoint import GPT, SIZES, made_up, write

BLOCK, BLOCKS = 4, 12
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 4.0, 6.0],
    "original_max_position_embeddings": 8,
}
CONFIGS = {
    "llama": {"model_type": "llama", **SIZES, "hidden_act": "silu"},
    "window": {"model_type": "mistral", **SIZES, "sliding_window": 3},
    "dynamic": {
        "model_type": "llama",
        **SIZES,
        "max_position_embeddings": 6,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    },
    "longrope": {"model_type": "llama", **SIZES, "rope_parameters": {**LONG, "rope_theta": 1e4}},
    "learned": {"model_type": "gpt2", **GPT},
    "alibi": {"model_type": "mpt", "d_model": 24, "n_heads": 3, "n_layers": 2, "vocab_size": 101},
    "experts": {"model_type": "mixtral", **SIZES, "num_local_experts": 4},
}


@pytest.fixture(params=CONFIGS)
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Decoder:
    """Random weights, spread so that a token that sees too much or too little shows."""
    _family, spec = from_transformers(CONFIGS[request.param])
    decoder = load_rank(write(tmp_path, made_up(spec)), 0)
    for weight in decoder.parameters():
        weight.data = weight.data * (10 if weight.dim() > 1 else 1)
    return decoder


class Text:
    """A sequence with cache blocks of its own, in an order of their own."""

    def __init__(self, ids: Tensor, blocks: list[int]) -> None:
        self.ids, self.blocks = ids, torch.tensor(blocks)


def texts() -> list[Text]:
    ids = torch.randint(0, 101, (3, 12), generator=torch.Generator().manual_seed(1))
    blocks = [[7, 2, 11], [0, 9, 4], [5, 3, 8]]
    return [Text(row[:length], own) for row, length, own in zip(ids, (12, 9, 5), blocks, strict=True)]


def step(parts: list[tuple[Text, int, int]]) -> tuple[Tensor, Step]:
    """Tokens start to stop of each text, packed into one step; all logits are wanted."""
    counts = torch.tensor([stop - start for _text, start, stop in parts])
    return torch.cat([text.ids[start:stop] for text, start, stop in parts]), Step(
        positions=torch.cat([torch.arange(start, stop) for _text, start, stop in parts]),
        sequences=torch.arange(len(parts)).repeat_interleave(counts),
        lengths=torch.tensor([stop for _text, _start, stop in parts]),
        block_table=torch.stack([text.blocks for text, _start, _stop in parts]),
        wanted=torch.arange(int(counts.sum())),
    )


def run(decoder: Decoder, caches: list[LayerCache], *parts: tuple[Text, int, int]) -> list[Tensor]:
    """The logits of each part."""
    ids, packed = step(list(parts))
    with torch.no_grad():
        logits = decoder(ids, packed, caches)
    return list(logits.split([stop - start for _text, start, stop in parts]))


def test_one_token_at_a_time_is_the_same_as_all_at_once(decoder: Decoder) -> None:
    text = texts()[1]
    if decoder.spec.rope and decoder.spec.rope.kind != "default":
        text.ids = text.ids[:6]  # beyond, frequencies depend on how the text was cut into steps
    length = len(text.ids)
    (together,) = run(decoder, decoder.new_caches(BLOCKS, BLOCK), (text, 0, length))
    caches = decoder.new_caches(BLOCKS, BLOCK)
    apart = [run(decoder, caches, (text, at, at + 1))[0] for at in range(length)]
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-4, atol=1e-4)


def test_texts_in_one_step_do_not_see_each_other(decoder: Decoder) -> None:
    """A prompt, a piece of a prompt and a decoded token in one step are as each alone."""
    first, second, third = texts()
    mixed, alone = decoder.new_caches(BLOCKS, BLOCK), decoder.new_caches(BLOCKS, BLOCK)
    run(decoder, mixed, (first, 0, 11), (second, 0, 4))
    together = run(decoder, mixed, (third, 0, 5), (first, 11, 12), (second, 4, 9))
    run(decoder, alone, (first, 0, 11))
    run(decoder, alone, (second, 0, 4))
    parts = [(third, 0, 5), (first, 11, 12), (second, 4, 9)]
    for logits, part in zip(together, parts, strict=True):
        torch.testing.assert_close(logits, run(decoder, alone, part)[0], rtol=1e-4, atol=1e-4)


def test_every_earlier_token_counts_and_no_later_one(decoder: Decoder) -> None:
    text, caches = texts()[0], decoder.new_caches(BLOCKS, BLOCK)
    (before,) = run(decoder, caches, (text, 0, 8))
    text.ids = text.ids.clone()
    text.ids[4] = (text.ids[4] + 1) % 101
    (after,) = run(decoder, decoder.new_caches(BLOCKS, BLOCK), (text, 0, 8))
    changed = ((before - after).abs().amax(-1) > 1e-3).tolist()
    assert changed == [at >= 4 for at in range(8)]


def test_only_the_wanted_tokens_get_logits(decoder: Decoder) -> None:
    ids, packed = step([(texts()[0], 0, 6), (texts()[2], 0, 4)])
    caches = decoder.new_caches(BLOCKS, BLOCK)
    wanted = torch.tensor([5, 9])
    some = Step(**{**vars(packed), "wanted": wanted})
    with torch.no_grad():
        every, chosen = decoder(ids, packed, caches), decoder(ids, some, caches)
    assert chosen.shape == (2, 101) and chosen.dtype == torch.float32
    torch.testing.assert_close(chosen, every[wanted])


def test_other_dtypes(decoder: Decoder) -> None:
    """Half precision comes close, its caches are of its dtype, its logits are float32 again."""
    text = texts()[0]
    (exact,) = run(decoder, decoder.new_caches(BLOCKS, BLOCK), (text, 0, 6))
    half = decoder.to(torch.bfloat16)
    caches = half.new_caches(BLOCKS, BLOCK)
    (close,) = run(half, caches, (text, 0, 6))
    assert caches[0].k.dtype == torch.bfloat16 and close.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, close, dim=-1).min() > 0.98


def test_layers_of_a_stage_keep_their_numbers() -> None:
    _family, spec = from_transformers(CONFIGS["llama"])
    names = [list(empty_decoder(spec, Mapping(pp_size=2), rank).layers) for rank in range(2)]
    assert names == [["0", "1"], ["2"]]
