"""Texts that are held to a regular expression, and what Transformers makes of that with the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import regex
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from actors.grammar import Grammar
from actors.grammar_words import open_words
from actors.matchers import matcher_of
from actors.messages import Request
from actors.sampler import Sampler
from actors.sampling_params import SamplingParams
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.actors.scenario import LIMITS
from tests.actors.test_detokenizer import CORPUS
from tests.actors.wishes import EOS, Wish, ends_of, prompt_of, wish_of
from tests.builders.test_engine import build
from tests.convert_tools import convert_opened
from tests.cuda_engines import build_untimed
from tests.oracle import llama, random_model

VOCAB = 401
"""More than the tokenizer's words."""
FOX = r"(the |quick |brown )*(fox|dog)( jumps)?"
PATTERNS = (r"[a-z]{3,8} (fox|dog)", FOX, r"[0-9]{1,3}(\.[0-9]{1,3}){3}", r"(yes|no|maybe)", r"[ab]*c?d{2,5}")


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model with a tokenizer, and an engine of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    engine: Path

    def text(self, tokens: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode([*tokens], skip_special_tokens=True))

    def words(self) -> LLTokenizer:
        return open_words(self.engine / "tokenizer", VOCAB, [EOS])

    def fitting(self, pattern: str, text: tuple[int, ...]) -> list[int]:
        """Tokens but ends by trial: whatever the text may begin with."""
        before, compiled = self.text(text), regex.compile(pattern)
        return [
            token
            for token in range(3, len(self.tokenizer))
            if compiled.fullmatch(before + self.text((token,)), partial=True)
        ]

    def allowed(self, pattern: str, text: tuple[int, ...], params: SamplingParams) -> list[int]:
        """By a matcher that has seen nothing but this text; ends are by trial."""
        matcher = matcher_of(Grammar(kind="regex", text=pattern), self.words())
        found = [] if EOS in text else tokens_of(matcher, text)
        if regex.fullmatch(pattern, self.text(text)):
            found += ends_of(params) if ends_of(params) or found else [EOS]
        return found


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, and its ends are where the models of `tests.oracle` have them."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=390,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


def held(folder: Path, mapping: Mapping, *, target: str = "cpu") -> Held:
    """Interpreted on a CPU; on a GPU in float32, so that greedy tokens are the oracle's."""
    words, model = tokenizer(), random_model(llama(vocab_size=VOCAB))
    model.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    if target == "cpu":
        checkpoint = convert_opened(open_folder(folder / "model"), mapping, folder / "engine")
        engine = build(checkpoint, compiled=False, limits=LIMITS)
    else:
        engine = build_untimed(folder / "model", mapping, LIMITS, folder, target)
        (engine / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    words.save_pretrained(engine / "tokenizer")
    return Held(model=model, tokenizer=words, engine=engine)


def tokens_of(matcher: LLMatcher, text: tuple[int, ...]) -> list[int]:
    """What may follow this, but ends."""
    matcher.reset()
    assert matcher.consume_tokens([*text])
    bits = np.zeros((1, -(-VOCAB // 32)), dtype=np.int32)
    fill_next_token_bitmask(matcher, bits)
    flags = np.unpackbits(bits.view(np.uint8)[0], bitorder="little")
    return [token for token in np.flatnonzero(flags).tolist() if token != EOS]


@torch.no_grad()
def text_of(held: Held, prompt: list[int], params: SamplingParams, index: int) -> tuple[int, ...]:
    """One text alone: Transformers' logits, what a trial of every token allows, and our draws."""
    assert params.grammar
    sampler = Sampler(slots=1, vocab_size=VOCAB, eos_token_ids=[EOS])
    sampler.admit(0, replace(params, min_tokens=0), prompt, index=index)
    text: tuple[int, ...] = ()
    while len(text) < params.max_tokens:
        scores = held.model(torch.tensor([[*prompt, *text]])).logits[:, -1].float()
        allowed = held.allowed(params.grammar.text, text, params)
        if len(text) < params.min_tokens and (rest := [one for one in allowed if one not in ends_of(params)]):
            allowed = rest
        text += (_chosen(sampler, scores, allowed, len(prompt) + len(text)),)
        if text[-1] in ends_of(params) and len(text) > params.min_tokens:
            break
    return text


def _chosen(sampler: Sampler, scores: Tensor, allowed: list[int], place: int) -> int:
    """Penalties come first: a token that may not be has no score that they could change."""
    row, position = torch.tensor([0]), torch.tensor([place])
    scores = sampler.adjusted(scores, row, position)
    held = torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor(allowed), 0) + scores
    tokens = sampler._chosen(held, row, position, sampler.all_needs)
    if sampler.all_needs.penalties:
        sampler.count(row, tokens)
    return int(tokens)


def held_wish(held: Held, name: str, prompt: list[int], joins: int, pattern: str, **params: Any) -> Wish:
    grammar = Grammar(kind="regex", text=pattern)
    given = SamplingParams(**{"temperature": 0, "max_tokens": 14, "grammar": grammar, **params})
    texts = [text_of(held, prompt, given, index) for index in range(given.n)]
    return Wish(request=Request(name, tuple(prompt), given), joins=joins, texts=texts)


def company(held: Held) -> tuple[Wish, ...]:
    """Held to grammars in every way that tokens can be chosen, and others who are not."""
    end = held.tokenizer.encode("d")[0]
    alike = prompt_of(1, 9)
    return (
        wish_of(held.model, "free", prompt_of(2, 5), 0, max_tokens=25),
        *(held_wish(held, f"greedy {n}", prompt_of(n, 7), n, one) for n, one in enumerate(PATTERNS)),
        held_wish(held, "drawn", alike, 1, FOX, temperature=1.0, seed=3, max_tokens=20),
        held_wish(held, "several", alike, 2, PATTERNS[4], n=3, temperature=2.0, seed=4, top_p=0.9),
        held_wish(held, "alike", alike, 6, PATTERNS[0], n=2, temperature=1.5, seed=8, top_k=40, min_p=0.01),
        held_wish(held, "told", prompt_of(3, 12), 3, FOX, logprobs=3, prompt_logprobs=2),
        held_wish(held, "long enough", prompt_of(4, 3), 3, PATTERNS[3], min_tokens=6, max_tokens=9),
        held_wish(held, "longer", prompt_of(5, 3), 4, PATTERNS[4], min_tokens=5),
        held_wish(held, "stopped", prompt_of(6, 3), 4, PATTERNS[4], stop_token_ids=(end,), min_tokens=2),
        held_wish(held, "endless", prompt_of(6, 4), 5, PATTERNS[3], ignore_eos=True, max_tokens=9),
        held_wish(held, "penalized", prompt_of(7, 4), 5, FOX, repetition_penalty=1.7, presence_penalty=1.0),
        held_wish(held, "biased", prompt_of(8, 4), 6, FOX, logit_bias={end: 50.0, EOS: -3.0}),
        wish_of(held.model, "beams", prompt_of(9, 4), 6, num_beams=2, max_tokens=8),
        wish_of(held.model, "free and drawn", prompt_of(2, 6), 7, temperature=1.0, seed=5, max_tokens=12),
    )
