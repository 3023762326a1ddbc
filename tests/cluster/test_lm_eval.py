"""lm-eval's `local-completions` client, as its users start it, on tasks made here: what Transformers says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.open_generator import GeneratorOptions
from cluster.local_app import local_app
from tests.cluster.api_server import serving
from tests.cluster.run_engines import Made, make

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]
CONTEXTS = ["the quick", "naïve café", "x, and 3 more", "emoji 😀 y", "the\ttabs", "a b"]
CHOICES = [" jumps", " over the lazy dog", "!"]
QUESTIONS = [
    {"question": f"{one} brown fox", "choices": CHOICES, "answer": n % 3} for n, one in enumerate(CONTEXTS)
]
Samples = dict[str, list[dict[str, Any]]]
CHOICE = """\
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
WORDS = """\
task: tiny_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["the", "\\n\\n"], max_gen_toks: 9, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """\
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def samples(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    """What the client writes of every question, by task."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, task in (("choice", CHOICE), ("words", WORDS), ("rolling", ROLLING)):
        (folder / f"{name}.yaml").write_text(task.format(data=folder / "data.jsonl"))
    app = local_app(made.engine(), name="tiny", generator=GeneratorOptions(num_blocks=64))
    with serving(app) as url:
        evaluate(url, made, folder)
    files = {name: next(folder.rglob(f"samples_tiny_{name}_*")) for name in ("choice", "words", "rolling")}
    yield {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}


def evaluate(url: str, made: Made, folder: Path) -> None:
    arguments = {
        "model": "tiny",
        "base_url": f"{url}/v1/completions",
        "tokenizer": made.folder / "model",
        "tokenizer_backend": "huggingface",
        "num_concurrent": 3,
        "max_retries": 1,
        "max_length": 60,
    }
    command = [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--batch_size", "2"]
    command += ["--tasks", "tiny_choice,tiny_words,tiny_rolling", "--include_path", str(folder)]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())]
    command += ["--output_path", str(folder / "out"), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]


@torch.no_grad()
def likelihoods(made: Made, tokens: list[int]) -> torch.Tensor:
    """Of every token but the first, and of the likeliest in its place."""
    rows = made.model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return torch.stack([rows.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0], rows.amax(-1)])


def test_loglikelihood(made: Made, samples: Samples) -> None:
    assert len(samples["choice"]) == len(QUESTIONS)
    for sample in samples["choice"]:
        context = sample["doc"]["question"]
        number = len(made.tokenizer.encode(context))
        for choice, ((told, is_greedy),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            given, best = likelihoods(made, made.tokenizer.encode(context + choice))[:, number - 1 :]
            assert float(told) == pytest.approx(given.sum().item(), abs=1e-3)
            assert str(is_greedy) == str(bool((given == best).all()))


def test_generate_until(made: Made, samples: Samples) -> None:
    for sample in samples["words"]:
        prompt = made.tokenizer.encode(sample["doc"]["question"])
        (tokens,) = made.generated(prompt, max_new_tokens=9)
        text = str(made.tokenizer.decode(tokens, skip_special_tokens=True))
        wanted = text.split("the")[0].split("\n\n")[0]
        assert sample["resps"] == [[wanted]]


def test_loglikelihood_rolling(made: Made, samples: Samples) -> None:
    for sample in samples["rolling"]:
        tokens = made.tokenizer.encode(sample["doc"]["question"])
        ((told,),) = sample["resps"]
        (given, _) = likelihoods(made, [made.tokenizer.bos_token_id, *tokens])
        assert float(told) == pytest.approx(given.sum().item(), abs=1e-3)


def test_the_token_that_ends_a_text_counts(made: Made) -> None:
    """The client leaves out the last log-probability: there is one even where nothing was said."""
    import httpx

    end = made.tokenizer.eos_token_id
    prompt = made.tokenizer.encode("the quick")
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    app = local_app(made.engine("ended"), name="tiny", generator=GeneratorOptions(num_blocks=64))
    with serving(app) as url:
        answer = httpx.post(f"{url}/v1/completions", json={**body, "logit_bias": {str(end): 100}}).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("the quick", "stop")
    assert {len(choice["logprobs"][name]) for name in choice["logprobs"]} == {len(prompt) + 1}
    assert choice["logprobs"]["text_offset"][-1] == len("the quick")
