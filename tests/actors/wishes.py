"""Requests of every kind, and what Transformers makes of them with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from actors.messages import Request
from actors.sampler import Sampler
from actors.sampling_params import SamplingParams

EOS, PAD = 2, 0


@dataclass(frozen=True, kw_only=True)
class Wish:
    """A request and what is to come of it."""

    request: Request
    joins: int
    """The step before which it comes; after the last of these, once nothing else is left."""
    texts: list[tuple[int, ...]]
    """By index."""
    scores: list[float] | None = None
    """Of texts that beam search finds."""
    leaves: tuple[int | None, int] | None = None
    """Which of its texts is cancelled, or all, and once it has so many tokens."""


LAST = 10**6
"""Joins when nothing else is left."""


class Spoken(LogitsProcessor):
    """Presence and frequency penalties, which Transformers does not have."""

    def __init__(self, num_prompt: int, params: SamplingParams) -> None:
        self._num_prompt, self._params = num_prompt, params

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        counts = torch.stack([row.bincount(minlength=scores.shape[-1]) for row in self._text(input_ids)])
        params = self._params
        return scores - counts * params.frequency_penalty - (counts > 0) * params.presence_penalty

    def _text(self, input_ids: Tensor) -> Tensor:
        return input_ids[:, self._num_prompt :]


def ends_of(params: SamplingParams) -> list[int]:
    return [*({EOS} - ({EOS} if params.ignore_eos else set())), *params.stop_token_ids]


@torch.no_grad()
def generated(model: PreTrainedModel, prompt: list[int], params: SamplingParams) -> Any:
    """What `generate` gives."""
    ids, ends = torch.tensor([prompt]), ends_of(params)
    options: dict[str, Any] = {"early_stopping": params.early_stopping} if params.num_beams > 1 else {}
    if params.num_beams > 1:
        options["length_penalty"] = params.length_penalty
    if params.logit_bias:
        options["sequence_bias"] = {(token,): bias for token, bias in params.logit_bias.items()}
    return model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=params.num_beams,
        num_return_sequences=params.n if params.num_beams > 1 else 1,
        max_new_tokens=params.max_tokens,
        min_new_tokens=params.min_tokens or None,
        repetition_penalty=params.repetition_penalty,
        logits_processor=[Spoken(len(prompt), params)],
        eos_token_id=ends or None,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def texts_of(model: PreTrainedModel, prompt: list[int], params: SamplingParams) -> list[tuple[int, ...]]:
    """Of a request in which nothing is drawn."""
    rows = generated(model, prompt, params).sequences[:, len(prompt) :].tolist()
    return [cut(row, ends_of(params)) for row in rows]


def cut(row: list[int], ends: list[int]) -> tuple[int, ...]:
    """Without padding."""
    places = [place for place, token in enumerate(row) if token in ends]
    return tuple(row[: places[0] + 1] if places else row)


@torch.no_grad()
def drawn(model: PreTrainedModel, prompt: list[int], params: SamplingParams, index: int) -> tuple[int, ...]:
    """One text of a request with a seed, alone: Transformers' logits, without a cache, and our draws."""
    sampler = Sampler(slots=1, vocab_size=model.config.vocab_size, eos_token_ids=[EOS])
    sampler.admit(0, params, prompt, index=index)
    tokens = list(prompt)
    while len(tokens) < len(prompt) + params.max_tokens:
        logits = model(torch.tensor([tokens])).logits[:, -1].float()
        found = sampler.sample(logits, torch.tensor([0]), torch.tensor([len(tokens)]))
        tokens.append(int(found.tokens))
        if tokens[-1] in ends_of(params):
            break
    return tuple(tokens[len(prompt) :])


def prompt_of(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(3, 90, (length,), generator=generator).tolist()
    return found


def wish_of(model: PreTrainedModel, name: str, prompt: list[int], joins: int, **params: Any) -> Wish:
    """With what it gets: greedy unless told otherwise."""
    given = SamplingParams(**{"temperature": 0, **params})
    request, scores = Request(name, tuple(prompt), given), None
    if given.num_beams > 1:
        texts = texts_of(model, prompt, given)
        scores = generated(model, prompt, given).sequences_scores.tolist()
    elif given.is_greedy:
        texts = texts_of(model, prompt, given) * given.n
    else:
        texts = [drawn(model, prompt, given, index) for index in range(given.n)]
    return Wish(request=request, joins=joins, texts=texts, scores=scores)


def wishes_of(model: PreTrainedModel) -> tuple[Wish, ...]:
    """One of every kind."""
    wish = partial(wish_of, model)
    last = wish("again", [*DRAWN, 8, 9], LAST, max_tokens=6)  # the one before it has begun alike
    return (*_greedy(wish), *_changed(wish), *_drawn(wish), *_searched(wish), *_cancelled(wish), last)


DRAWN = prompt_of(7, 9)
MakeWish = Callable[..., Wish]


def _greedy(wish: MakeWish) -> Iterator[Wish]:
    """Short and long ones, some of which begin alike."""
    long = prompt_of(1, 27)
    yield wish("short", prompt_of(2, 1), 0, max_tokens=22)
    yield wish("middle", prompt_of(3, 7), 0, max_tokens=18, logprobs=2)
    yield wish("long", long, 1, max_tokens=14)
    yield wish("alike", [*long[:21], *prompt_of(4, 3)], 2, max_tokens=9)
    yield wish("judged", prompt_of(11, 21), 4, max_tokens=5, prompt_logprobs=2, logits=True)
    yield wish("twins", prompt_of(5, 10), 6, max_tokens=8, n=2)


def _changed(wish: MakeWish) -> Iterator[Wish]:
    """Greedy with other scores, or other ends."""
    prompt, most = prompt_of(6, 9), 12
    (plain,) = wish("plain", prompt, 0, max_tokens=most).texts
    stop = max({*plain}, key=plain.index)
    yield wish("stop", prompt, 2, max_tokens=most, stop_token_ids=(stop,))
    yield wish("least", prompt, 2, max_tokens=most, stop_token_ids=(plain[1], EOS), min_tokens=6)
    yield wish("repetition", prompt, 3, max_tokens=most, repetition_penalty=1.4)
    yield wish(
        "presence", prompt, 4, max_tokens=most, presence_penalty=0.7, frequency_penalty=0.4, logprobs=0
    )
    yield wish("bias", prompt, 5, max_tokens=most, logit_bias={plain[0]: -3.0, 9: 1.5, EOS: -9.0})


def _drawn(wish: MakeWish) -> Iterator[Wish]:
    """With seeds, the same once in company and once alone."""
    nucleus = {"max_tokens": 11, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    yield wish("draw", DRAWN, 3, **nucleus)
    yield wish(
        "draws",
        DRAWN,
        7,
        max_tokens=11,
        temperature=1.0,
        top_k=30,
        min_p=0.02,
        frequency_penalty=0.3,
        seed=6,
        n=3,
        logprobs=1,
    )
    yield wish("alone", DRAWN, LAST, **nucleus)


def _searched(wish: MakeWish) -> Iterator[Wish]:
    """Beams, one search with all that changes scores."""
    prompt = prompt_of(8, 9)
    yield wish("beams", prompt, 4, max_tokens=10, num_beams=3, n=2, length_penalty=0.8)
    yield wish(
        "changed",
        prompt,
        6,
        max_tokens=9,
        num_beams=2,
        n=2,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        logit_bias={7: 2.0},
        stop_token_ids=(4, 7),
        min_tokens=4,
    )


def _cancelled(wish: MakeWish) -> Iterator[Wish]:
    whole = wish("left", prompt_of(9, 11), 5, max_tokens=30, ignore_eos=True)
    half = wish("half", prompt_of(10, 6), 8, max_tokens=9, n=2)
    yield replace(whole, leaves=(None, 4))
    yield replace(half, leaves=(1, 2))
