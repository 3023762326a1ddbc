"""The `openai` package, as users have it, against the API over a tiny real engine: what Transformers says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from actors.open_generator import GeneratorOptions
from builders.errors import UserError
from cluster.local_app import local_app
from tests.cluster.api_server import TEMPLATE, serving
from tests.cluster.run_engines import Made, make

MESSAGES: Any = [{"role": "user", "content": "the quick"}, {"role": "developer", "content": "be brief"}]
RENDERED = "<|turn|>user: the quick\n<|turn|>system: be brief\n<|turn|>assistant: "
GREEDY: Any = {"model": "tiny", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def url(made: Made) -> Iterator[str]:
    options = GeneratorOptions(num_blocks=64)
    app = local_app(made.engine(), name="tiny", generator=options, chat_template=TEMPLATE)
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(made: Made, prompt: str, tokens: int = 12, **settings: Any) -> list[str]:
    found = made.generated(made.tokenizer.encode(prompt), max_new_tokens=tokens, **settings)
    return [made.tokenizer.decode(one, skip_special_tokens=True) for one in found]


def test_a_chat(client: openai.OpenAI, made: Made) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    assert [answer.choices[0].message.content] == expected(made, RENDERED)
    assert answer.choices[0].message.role == "assistant" and answer.usage
    assert answer.usage.prompt_tokens == len(made.tokenizer.encode(RENDERED))
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.choices[0].finish_reason in ("stop", "length") and answer.model == "tiny"


def test_a_streamed_chat(client: openai.OpenAI, made: Made) -> None:
    stream = client.chat.completions.create(
        messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    *parts, last = list(stream)
    assert ["".join(part.choices[0].delta.content or "" for part in parts)] == expected(made, RENDERED)
    assert [part.choices[0].delta.role for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
    assert [bool(part.choices[0].finish_reason) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert last.choices == [] and last.usage and last.usage.completion_tokens >= len(parts) - 1
    assert all(part.usage is None for part in parts) and {part.id for part in parts} == {last.id}


def test_several_prompts_of_texts_and_of_tokens(client: openai.OpenAI, made: Made) -> None:
    prompts = ["the quick brown", "hello", "x"]
    texts = [expected(made, prompt)[0] for prompt in prompts]
    answer = client.completions.create(prompt=prompts, **GREEDY)
    assert [choice.text for choice in answer.choices] == texts
    tokens = [made.tokenizer.encode(prompt) for prompt in prompts]
    answer = client.completions.create(prompt=tokens, **GREEDY)
    assert [choice.text for choice in answer.choices] == texts
    streamed = [""] * 3
    for part in client.completions.create(prompt=prompts, stream=True, **GREEDY):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == texts


def test_beam_search(client: openai.OpenAI, made: Made) -> None:
    wanted = {"use_beam_search": True, "best_of": 3}
    answer = client.completions.create(prompt="the quick", n=2, extra_body=wanted, **GREEDY)
    beams = expected(made, "the quick", num_beams=3, num_return_sequences=2)
    assert [choice.text for choice in answer.choices] == beams


def test_stop_strings_are_cut_off(client: openai.OpenAI, made: Made) -> None:
    (text,) = expected(made, "the quick")
    stop = text[4:7]
    answer = client.completions.create(prompt="the quick", stop=["never there", stop], **GREEDY)
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_a_seed_says_it_all(client: openai.OpenAI) -> None:
    wish: Any = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "temperature": 1.5, "n": 2}
    once, again, other = (client.completions.create(seed=seed, **wish) for seed in (7, 7, 8))
    assert [one.text for one in once.choices] == [one.text for one in again.choices]
    assert [one.text for one in once.choices] != [one.text for one in other.choices]
    assert once.choices[0].text != once.choices[1].text


def test_choices_that_openai_does_not_have(client: openai.OpenAI, made: Made) -> None:
    """What they mean is tested with the sampler; here, that they get there."""
    text = expected(made, "the quick")[0]
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        wish = {**GREEDY, "temperature": 1.0, "extra_body": extra}
        assert client.completions.create(prompt="the quick", **wish).choices[0].text == text
    banned = client.completions.create(prompt="the quick", logit_bias={"5": 100}, **GREEDY)
    assert banned.choices[0].text == made.tokenizer.decode([5] * 12)
    forced = {"logit_bias": {str(made.tokenizer.eos_token_id): 100}}
    answer = client.completions.create(prompt="hello", extra_body={"min_tokens": 3}, **forced, **GREEDY)
    assert answer.usage and answer.usage.completion_tokens == 4 and answer.choices[0].finish_reason == "stop"
    answer = client.completions.create(prompt="hello", extra_body={"ignore_eos": True}, **forced, **GREEDY)
    assert answer.usage and answer.usage.completion_tokens == 12


@torch.no_grad()
def test_log_probabilities_of_prompts_and_texts(client: openai.OpenAI, made: Made) -> None:
    answer = client.completions.create(prompt="the quick", logprobs=2, echo=True, **GREEDY)
    choice = answer.choices[0]
    found = choice.logprobs
    assert found and found.tokens and found.token_logprobs and found.top_logprobs and found.text_offset
    prompt = made.tokenizer.encode("the quick")
    tokens = [*prompt, *made.generated(prompt, max_new_tokens=12)[0]]
    ids = torch.tensor([tokens[: len(found.tokens)]])
    assert choice.text.startswith("the quick") and len(found.tokens) >= len(tokens) - 1
    for at, token in zip(found.text_offset[: len(prompt)], found.tokens, strict=False):
        assert choice.text[at:].startswith(token)
    scores = made.model(ids).logits.log_softmax(-1)[0]
    for place, value in enumerate(found.token_logprobs[1:], 1):
        assert math.isclose(value, scores[place - 1, ids[0, place]], abs_tol=1e-3)
        assert max(found.top_logprobs[place].values()) == pytest.approx(
            scores[place - 1].max().item(), abs=1e-3
        )
    assert found.token_logprobs[0] is None


def test_only_the_prompt_is_scored(client: openai.OpenAI, made: Made) -> None:
    wish: Any = {**GREEDY, "max_tokens": 0}
    answer = client.completions.create(prompt=["hello there", "x"], logprobs=0, echo=True, **wish)
    assert [choice.text for choice in answer.choices] == ["hello there", "x"]
    found = answer.choices[0].logprobs
    assert found and len(found.token_logprobs or ()) == len(made.tokenizer.encode("hello there"))
    assert answer.usage and answer.usage.completion_tokens == 0


def test_log_probabilities_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY)
    found = answer.choices[0].logprobs
    assert found and found.content
    text = b"".join(bytes(one.bytes or ()) for one in found.content).decode(errors="replace")
    assert text == answer.choices[0].message.content
    for one in found.content:
        assert len(one.top_logprobs) == 3
        assert (one.top_logprobs[0].token, one.top_logprobs[0].logprob) == (one.token, one.logprob)


def test_the_likeliest_of_several(client: openai.OpenAI) -> None:
    wish: Any = {"model": "tiny", "prompt": "hello", "max_tokens": 8, "logprobs": 0, "seed": 3}
    everything = client.completions.create(n=5, **wish)
    best = client.completions.create(n=2, best_of=5, **wish)

    def score(choice: Any) -> float:
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(everything.choices, key=score, reverse=True)
    assert [one.text for one in best.choices] == [one.text for one in ranked[:2]]
    assert best.usage == everything.usage


def test_tools_reach_the_template(client: openai.OpenAI, url: str, made: Made) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with_tool = {"model": "tiny", "messages": MESSAGES, "tools": [tool]}
    tokens = httpx.post(f"{url}/tokenize", json=with_tool).json()["tokens"]
    assert '{"type": "function", "function": {"name": "f"' in made.tokenizer.decode(tokens)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            messages=MESSAGES, tools=[tool], tool_choice="required", **{**GREEDY, "max_tokens": 1}
        )
    assert refused.value.param == "tool_choice" and refused.value.code == "unsupported_value"


def test_words_and_tokens(url: str, made: Made) -> None:
    tokens = made.tokenizer.encode("Grüße, naïve café")
    found = httpx.post(f"{url}/tokenize", json={"prompt": "Grüße, naïve café"}).json()
    assert found == {"tokens": tokens, "count": len(tokens), "max_model_len": 64}
    assert httpx.post(f"{url}/detokenize", json={"tokens": tokens}).json() == {"prompt": "Grüße, naïve café"}


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "rankforge"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_errors_are_openais(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(prompt=[5] * 50, **GREEDY)
    assert raised.value.code == "context_length_exceeded" and raised.value.param == "prompt"
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(messages=MESSAGES, **{**GREEDY, "max_tokens": 60})
    assert raised.value.code == "context_length_exceeded" and raised.value.param == "messages"
    with pytest.raises(openai.NotFoundError, match="use tiny"):
        client.chat.completions.create(messages=MESSAGES, model="gpt-4o")
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model="tiny", input="hello")
    with pytest.raises(openai.BadRequestError, match="num_beams=4: more than max_beam_width=3"):
        client.completions.create(prompt="x", n=4, extra_body={"use_beam_search": True}, **GREEDY)


def test_many_at_once(url: str, made: Made) -> None:
    """More than the engine has room for, of every kind, half of them left in the middle."""
    prompts = [f"the quick {word}" for word in "brown fox jumps over a lazy dog and then some more".split()]

    async def ask(client: openai.AsyncOpenAI, number: int, prompt: str) -> str:
        stream = await client.completions.create(prompt=prompt, stream=True, **GREEDY)
        text = ""
        async for part in stream:
            text += part.choices[0].text
            if number % 2:
                await stream.close()
                break
        return text

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, *one) for one in enumerate(prompts)))

    for number, (text, prompt) in enumerate(zip(asyncio.run(ask_all()), prompts, strict=True)):
        (whole,) = expected(made, prompt)
        assert whole.startswith(text) if number % 2 else whole == text


def test_an_engine_without_words(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no tokenizer"):
        local_app(tmp_path)
