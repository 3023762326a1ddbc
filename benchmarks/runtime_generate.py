"""Transformers' `generate` on the same device, one batch at a time: the floor that every user has."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.runtime_cases import Case, Shape
from benchmarks.runtime_figures import Arrival, Figures, Pass


def floor(shape: Shape, cases: Sequence[Case], device: str) -> Iterator[tuple[Case, Figures]]:
    """Every case, each after two tokens that only warm up."""
    from transformers import AutoConfig, AutoModelForCausalLM  # seconds, which nobody else is to wait for

    config = AutoConfig.for_model(**shape.config)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
    model.eval()
    for case in cases:
        yield case, _figures(model, case, device)


def _figures(model: Any, case: Case, device: str) -> Figures:
    short = Case(batch=case.batch, tokens_in=case.tokens_in, tokens_out=2)
    vocabulary = model.config.vocab_size
    _generated(model, short, case.prompts(vocabulary, 0), device)
    return _generated(model, case, case.prompts(vocabulary, 1), device).figures()


def _generated(model: Any, case: Case, prompts: Sequence[tuple[int, ...]], device: str) -> Pass:
    """The prompts are on the host at first, as a caller's are; so is every token at last."""
    from transformers import GenerationConfig

    clock = _Clock()
    wanted = GenerationConfig(
        max_new_tokens=case.tokens_out, min_new_tokens=case.tokens_out, do_sample=False, pad_token_id=0
    )
    began = time.perf_counter()
    ids = torch.tensor(prompts, device=device)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=wanted,
        stopping_criteria=[clock],
    )
    texts = [f"text-{number}" for number in range(case.batch)]
    arrivals = [Arrival(at_s=at, text=text, tokens=1) for at in clock.times for text in texts]
    assert len(clock.times) == case.tokens_out, f"{len(clock.times)} steps for the case {case}"
    return Pass(case=case, asked_s=dict.fromkeys(texts, began), arrivals=arrivals)


class _Clock:
    """Hears of every token, as something that may end a text, and ends none."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        input_ids[:, -1].cpu()
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
