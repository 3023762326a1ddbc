"""Every family against Transformers: the same logits and the same greedy tokens, in every layout."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from builders.errors import LayoutError
from builders.mapping import Mapping, check_mapping
from builders.sources.hf import open_folder
from builders.sources.opened import Opened
from tests.convert_tools import convert_opened
from tests.oracle import MODELS, random_model
from tests.sim import Ranks

logging.set_verbosity_error()
logging.disable_progress_bar()

NEW_TOKENS = 32

LAYOUTS = {
    "1": Mapping(),
    "tp2": Mapping(tp_size=2),
    "pp2": Mapping(pp_size=2),
    "tp2pp2": Mapping(tp_size=2, pp_size=2),
    "tp4": Mapping(tp_size=4),
    "tp2-vocab": Mapping(tp_size=2, embedding_split="vocab"),
    "tp2-hidden": Mapping(tp_size=2, embedding_split="hidden"),
    "tp2pp2-vocab": Mapping(tp_size=2, pp_size=2, embedding_split="vocab"),
}
MOE_LAYOUTS = {"ep2": Mapping(tp_size=2, ep_size=2), "tp4ep2": Mapping(tp_size=4, ep_size=2)}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What Transformers says."""

    opened: Opened
    prompt: Tensor
    logits: Tensor
    tokens: Tensor


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@functools.cache
def reference(name: str, sources: Path) -> Reference:
    """A model's checkpoint and answers, made once for all layouts."""
    model = random_model(MODELS[name]())
    model.save_pretrained(sources / name)
    return answers(model, open_folder(sources / name))


@torch.no_grad()
def answers(model: PreTrainedModel, opened: Opened) -> Reference:
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(3, opened.spec.vocab_size, (2, 11), generator=generator)
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    return Reference(opened=opened, prompt=prompt, logits=model(prompt).logits, tokens=tokens)


@torch.no_grad()
def check(wanted: Reference, checkpoint: Path) -> None:
    """All ranks in lockstep give the reference's logits, and its tokens through the cache."""
    max_len = wanted.tokens.shape[1]
    logits = Ranks(checkpoint, len(wanted.prompt), max_len).forward(wanted.prompt, 0)
    error = (logits - wanted.logits).abs().max() / wanted.logits.abs().max()
    assert error < 1e-4, f"logits differ by {error:.1e} of the largest"
    tokens = Ranks(checkpoint, len(wanted.prompt), max_len).greedy(wanted.prompt, NEW_TOKENS)
    assert torch.equal(tokens, wanted.tokens)


def cases() -> list[object]:
    """Every model in every layout; the rarer ones are left to the whole run."""
    often = {"1", "tp2pp2", "ep2"}
    return [
        pytest.param(name, layout, marks=[] if layout in often else pytest.mark.slow, id=f"{name}-{layout}")
        for name in MODELS
        for layout in LAYOUTS | (MOE_LAYOUTS if name.startswith(("mixtral", "dbrx")) else {})
    ]


@pytest.mark.parametrize(("name", "layout"), cases())
def test_same_as_transformers(name: str, layout: str, sources: Path, tmp_path: Path) -> None:
    wanted, mapping = reference(name, sources), (LAYOUTS | MOE_LAYOUTS)[layout]
    if name == "mpt-six-heads" and mapping.tp_size == 4:
        with pytest.raises(LayoutError, match="sizes that work: 1, 2, 3, 6"):
            check_mapping(wanted.opened.spec, mapping)
        return
    check(wanted, convert_opened(wanted.opened, mapping, tmp_path / "out"))


def test_comparison_can_fail(sources: Path, tmp_path: Path) -> None:
    """Two heads in the wrong order are seen."""
    wanted = reference("llama2-gqa", sources)
    out = convert_opened(wanted.opened, Mapping(), tmp_path / "out")
    ranks = Ranks(out, 2, wanted.tokens.shape[1])
    qkv = ranks.stages[0][0][0].layers["1"].attn.qkv
    rows = torch.arange(qkv.weight.shape[0])
    rows[:12], rows[12:24] = rows[12:24].clone(), rows[:12].clone()
    qkv.weight.data = qkv.weight.data[rows]
    assert not torch.equal(ranks.greedy(wanted.prompt, NEW_TOKENS), wanted.tokens)
