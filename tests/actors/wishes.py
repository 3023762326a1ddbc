"""Requests of every kind, and what Transformers makes of them with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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


DRAWN = prompt_of(7, 9)


@dataclass(frozen=True)
class Wishes:
    """All of one model."""

    model: PreTrainedModel

    def __iter__(self) -> Iterator[Wish]:
        yield from self._greedy()
        yield from self._changed()
        yield from self._drawn()
        yield from self._searched()
        yield from self._cancelled()
        yield self._wish("again", [*DRAWN, 8, 9], LAST, max_tokens=6)  # the one before it has begun alike

    def _greedy(self) -> Iterator[Wish]:
        """Short and long ones, some of which begin alike."""
        long = prompt_of(1, 27)
        yield self._wish("short", prompt_of(2, 1), 0, max_tokens=22)
        yield self._wish("middle", prompt_of(3, 7), 0, max_tokens=18, logprobs=2)
        yield self._wish("long", long, 1, max_tokens=14)
        yield self._wish("alike", [*long[:21], *prompt_of(4, 3)], 2, max_tokens=9)
        yield self._wish("judged", prompt_of(11, 21), 4, max_tokens=5, prompt_logprobs=2, logits=True)
        yield self._wish("twins", prompt_of(5, 10), 6, max_tokens=8, n=2)

    def _changed(self) -> Iterator[Wish]:
        """Greedy with other scores, or other ends."""
        prompt = prompt_of(6, 9)
        (plain,) = texts_of(self.model, prompt, SamplingParams(max_tokens=12, temperature=0))
        stop = max({*plain}, key=plain.index)
        yield self._wish("stop", prompt, 2, max_tokens=12, stop_token_ids=(stop,))
        yield self._wish("least", prompt, 2, max_tokens=12, stop_token_ids=(plain[1], EOS), min_tokens=6)
        yield self._wish("repetition", prompt, 3, max_tokens=12, repetition_penalty=1.4)
        yield self._wish(
            "presence", prompt, 4, max_tokens=12, presence_penalty=0.7, frequency_penalty=0.4, logprobs=0
        )
        yield self._wish("bias", prompt, 5, max_tokens=12, logit_bias={plain[0]: -3.0, 9: 1.5, EOS: -9.0})

    def _drawn(self) -> Iterator[Wish]:
        """With seeds, one of them where company is."""
        nucleus: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
        three = {"top_k": 30, "min_p": 0.02, "frequency_penalty": 0.3, "seed": 6, "n": 3, "logprobs": 1}
        for name, joins, params in (("draw", 3, nucleus), ("draws", 7, three), ("alone", LAST, nucleus)):
            prompt, given = DRAWN, SamplingParams(max_tokens=11, **params)
            texts = [drawn(self.model, prompt, given, index) for index in range(given.n)]
            yield Wish(request=Request(name, tuple(prompt), given), joins=joins, texts=texts)

    def _searched(self) -> Iterator[Wish]:
        """Beams, one search with all that changes scores."""
        plain = SamplingParams(max_tokens=10, num_beams=3, n=2, length_penalty=0.8)
        changed = SamplingParams(
            max_tokens=9,
            num_beams=2,
            n=2,
            repetition_penalty=1.3,
            frequency_penalty=0.5,
            logit_bias={7: 2.0},
            stop_token_ids=(4, 7),
            min_tokens=4,
        )
        for name, joins, params in (("beams", 4, plain), ("changed", 6, changed)):
            prompt = prompt_of(8, 9)
            yield Wish(
                request=Request(name, tuple(prompt), params),
                joins=joins,
                texts=texts_of(self.model, prompt, params),
                scores=generated(self.model, prompt, params).sequences_scores.tolist(),
            )

    def _cancelled(self) -> Iterator[Wish]:
        whole = self._wish("left", prompt_of(9, 11), 5, max_tokens=30, ignore_eos=True)
        half = self._wish("half", prompt_of(10, 6), 8, max_tokens=9, n=2)
        for wish, leaves in ((whole, (None, 4)), (half, (1, 2))):
            yield Wish(request=wish.request, joins=wish.joins, texts=wish.texts, leaves=leaves)

    def _wish(self, name: str, prompt: list[int], joins: int, **params: Any) -> Wish:
        given = SamplingParams(**{"temperature": 0, **params})
        texts = texts_of(self.model, prompt, given) * given.n
        return Wish(request=Request(name, tuple(prompt), given), joins=joins, texts=texts)
