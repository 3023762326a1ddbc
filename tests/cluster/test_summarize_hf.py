"""Transformers' side: batches that are padded give what every prompt gives alone, scored by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from actors.sampling_params import SamplingParams
from builders.errors import SourceError, UserError
from cluster.summaries import Prompt, Summary
from cluster.summarize_hf import HfSummarizer
from tests import oracle
from tests.cluster.summarize_case import save_model, tokenizer

PROMPTS: list[Prompt] = [(1, 17, 42, 7), (1, 5), (1, 90, 3, 3, 8, 21, 66), (1, 4, 4)]
NEW_TOKENS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("hf") / "model")


def opened(
    model: Path, ends: tuple[int, ...] | None = (), scored: bool = False, **params: Any
) -> HfSummarizer:
    given = SamplingParams(**{"max_tokens": NEW_TOKENS, "temperature": 0, **params})
    return HfSummarizer(
        model, tokenizer(), given, dtype="auto", spread=False, ends=ends, wants_logprobs=scored
    )


def tokens_of(summaries: list[Summary]) -> list[tuple[int, ...]]:
    return [text.tokens for summary in summaries for text in summary.texts]


@torch.no_grad()
def greedy(model: Path, prompt: Prompt, penalty: float = 1.0) -> tuple[int, ...]:
    """One token after another, without a cache, padding or `generate`."""
    net = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = net(torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        ids.append(int(logits.argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_a_padded_batch_is_every_prompt_alone(model: Path, penalty: float) -> None:
    """With a penalty too: padding is no token of the prompt."""
    found = opened(model, repetition_penalty=penalty).summarize(PROMPTS)
    assert tokens_of(found) == [greedy(model, prompt, penalty) for prompt in PROMPTS]


def test_settings_of_the_model_do_not_count(model: Path, tmp_path: Path) -> None:
    """But for the tokens that end a text, where nobody says others."""
    folder = save_model(tmp_path / "model")
    whole = greedy(folder, PROMPTS[0])
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 9.0, "max_length": 3}
    GenerationConfig(**settings, eos_token_id=[whole[4], 2]).save_pretrained(folder)
    assert tokens_of(opened(folder, ends=None).summarize(PROMPTS[:1])) == [whole[: whole.index(whole[4]) + 1]]
    assert tokens_of(opened(folder, ends=()).summarize(PROMPTS[:1])) == [whole]


def test_what_ends_a_text_is_a_token_and_no_text(model: Path) -> None:
    whole = greedy(model, PROMPTS[0])
    end = whole.index(whole[5])
    text = opened(model, ends=(whole[5],)).summarize(PROMPTS)[0].texts[0]
    assert text.tokens == whole[: end + 1]
    assert text.text == tokenizer().decode(list(whole[:end]))


@torch.no_grad()
def test_log_probabilities_by_hand(model: Path) -> None:
    net = AutoModelForCausalLM.from_pretrained(model).eval()
    ours = opened(model, scored=True, num_beams=3, n=3)
    summaries = ours.summarize(PROMPTS)
    assert {summary.prompt_logprob for summary in summaries} == {None}
    for prompt, summary in zip(PROMPTS, ours.scored(PROMPTS, summaries), strict=True):
        assert len({text.tokens for text in summary.texts}) == 3
        for text in summary.texts:
            ids = [*prompt, *text.tokens]
            rows = net(torch.tensor([ids])).logits[0].log_softmax(-1)
            by_token = [float(rows[at, token]) for at, token in enumerate(ids[1:])]
            assert summary.prompt_logprob == pytest.approx(math.fsum(by_token[: len(prompt) - 1]), rel=1e-5)
            assert text.logprob == pytest.approx(math.fsum(by_token[len(prompt) - 1 :]), rel=1e-5)


def test_samples_repeat_with_their_seed(model: Path) -> None:
    chance = {"temperature": 1.0, "top_k": 20, "top_p": 0.9}
    first, same, other = (
        tokens_of(opened(model, seed=seed, **chance).summarize(PROMPTS)) for seed in (3, 3, 4)
    )
    assert first == same != other


def test_more_than_the_table_of_positions_is_refused(tmp_path: Path) -> None:
    oracle.random_model(oracle.gpt2()).save_pretrained(tmp_path)
    fits, longer = oracle.POSITIONS - NEW_TOKENS, oracle.POSITIONS - NEW_TOKENS + 1
    assert len(tokens_of(opened(tmp_path).summarize([(1,) * fits]))[0]) == NEW_TOKENS
    with pytest.raises(UserError, match="take 65 tokens, the model has 64 positions"):
        opened(tmp_path).summarize([(1,) * longer])


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _changed(name: str, value: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, name: value}))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_cut, r"cannot load it \(Error while deserializing header"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON file"),
        (_changed("hidden_size", 64), "cannot load it"),
        (_changed("num_hidden_layers", 4), r"9 tensors are missing, first model\.layers\.3\."),
    ],
    ids=["cut", "no weights", "no JSON", "another width", "more layers"],
)
def test_models_that_cannot_be_loaded(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    """Where tensors are missing, Transformers alone would make them up."""
    folder = save_model(tmp_path / "model")
    change(folder)
    with pytest.raises(SourceError, match=words) as caught:
        opened(folder)
    assert str(caught.value).startswith(f"--hf_model_dir={folder}: ")


@pytest.mark.skipif(find_spec("accelerate") is None, reason="takes accelerate")
def test_spread_over_all_that_is_there(model: Path) -> None:
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0)
    spread = HfSummarizer(model, tokenizer(), params, dtype="float32", spread=True, ends=())
    assert tokens_of(spread.summarize(PROMPTS)) == tokens_of(opened(model).summarize(PROMPTS))
