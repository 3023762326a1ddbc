"""What an engine says of prompts, and the rows that it chooses by, against Transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.generator import Generator
from actors.messages import Request, Tokens
from actors.open_generator import GeneratorOptions, open_generator
from actors.sampling_params import SamplingParams
from builders.mapping import Mapping
from tests.actors.engines import Oracle, engine, oracle

PROMPT = (5, 17, 42, 7, 99, 3, 61, 88, 2, 30, 5, 17, 42, 7, 99, 3, 61, 11, 5, 17, 42)
BEST = 3


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return oracle("llama2-gqa", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def built(truth: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine(truth.folder, Mapping(), tmp_path_factory.mktemp("engine") / "engine")


def told(generator: Generator, *requests: Request) -> dict[tuple[str, int], list[Tokens]]:
    """The news of every text."""
    for request in requests:
        generator.add(request)
    news: dict[tuple[str, int], list[Tokens]] = {}
    while generator.has_work:
        for one in generator.step():
            news.setdefault((one.request, one.index), []).append(one)
    return news


@torch.no_grad()
def logits_of(truth: Oracle, tokens: tuple[int, ...]) -> Tensor:
    """[tokens, vocabulary]"""
    return truth.model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize(("blocks", "drafts"), [(64, 0), (64, 3), (24, 0)], ids=["", "guessing", "preempted"])
def test_scores_and_rows_are_those_of_transformers(
    blocks: int, drafts: int, truth: Oracle, built: Path
) -> None:
    asked = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logits": True}
    requests = [
        Request(f"r{n}", PROMPT[n:], SamplingParams(prompt_logprobs=BEST, n=1 + n % 2, **asked))
        for n in range(4)
    ]
    with open_generator(built, GeneratorOptions(num_blocks=blocks, draft_tokens=drafts)) as generator:
        found = told(generator, Request("other", PROMPT, SamplingParams(**asked)), *requests)
    assert found.pop(("other", 0))[0].prompt_logprobs == ()
    assert len(found) == 6
    for (name, _), news in found.items():
        prompt = PROMPT[int(name[1:]) :]
        text = tuple(token for one in news for token in one.tokens)
        wanted = logits_of(truth, prompt + text)
        check_prompt(news, prompt, wanted.log_softmax(-1))
        rows = [torch.frombuffer(bytearray(row), dtype=torch.float32) for one in news for row in one.logits]
        torch.testing.assert_close(torch.stack(rows), wanted[len(prompt) - 1 : -1], rtol=1e-4, atol=1e-4)


def check_prompt(news: list[Tokens], prompt: tuple[int, ...], wanted: Tensor) -> None:
    assert [len(one.prompt_logprobs) for one in news] == [len(prompt) - 1] + [0] * (len(news) - 1)
    for place, one in enumerate(news[0].prompt_logprobs):
        best = wanted[place].topk(BEST)
        assert one.sampled == pytest.approx(wanted[place, prompt[place + 1]].item(), abs=1e-4)
        assert one.tokens == tuple(best.indices.tolist())
        assert one.values == pytest.approx(best.values.tolist(), abs=1e-4)
