"""`rankforge run` with real engines: Transformers' texts, files that say the same, refusals before a load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

import cluster.run
from builders.errors import UserError
from cluster.run import RunResult, run
from cluster.run_options import RunOptions
from tests.cluster.run_engines import Made, make
from tests.cluster.test_cli import one_line_error, rankforge
from tests.cluster.test_sentencepiece import train

TEXTS = ["the quick brown", "hello", "naïve café and 3 more", "x"]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def engine(made: Made) -> Path:
    return made.engine()


@pytest.fixture(scope="module")
def wordless(made: Made, engine: Path) -> Path:
    """The same engine without a tokenizer."""
    shutil.copytree(engine, made.folder / "wordless")
    shutil.rmtree(made.folder / "wordless" / "tokenizer")
    return made.folder / "wordless"


def generated(engine_dir: Path, out: StringIO | None = None, **options: Any) -> RunResult:
    given = frozenset(options)
    settings = {"engine_dir": engine_dir, "max_output_len": NEW_TOKENS, "given": given, **options}
    return run(RunOptions(**settings), out or StringIO(), StringIO())


def tokens_of(result: RunResult) -> list[list[list[int]]]:
    return [[list(output.tokens) for output in one.outputs] for one in result.generated.results]


def encoded(made: Made, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [made.tokenizer.encode(text) for text in texts]


def test_greedy_texts_are_those_of_transformers(made: Made, engine: Path) -> None:
    result = generated(engine, input_text=TEXTS)
    expected = [made.generated(prompt, max_new_tokens=NEW_TOKENS) for prompt in encoded(made)]
    assert tokens_of(result) == expected
    lines = []
    for number, (text, ((*tokens,),)) in enumerate(zip(TEXTS, expected, strict=True)):
        lines.append(f'Input [Text {number}]: "{text}"')
        lines.append(
            f'Output [Text {number} Beam 0]: "{made.tokenizer.decode(tokens, skip_special_tokens=True)}"'
        )
    assert result.to_text() == "\n".join(lines)


@pytest.mark.parametrize("early_stopping", [0, 1])
def test_beams_are_those_of_transformers(made: Made, engine: Path, early_stopping: int) -> None:
    (free,) = tokens_of(generated(engine, input_text=TEXTS[:1]))[0]
    end = free[6]
    choice = {"num_beams": 3, "length_penalty": 0.7}
    result = generated(engine, input_text=TEXTS, early_stopping=early_stopping, end_id=end, **choice)
    settings = {"num_return_sequences": 3, "early_stopping": bool(early_stopping), **choice}
    assert tokens_of(result) == [
        made.generated(prompt, end=end, max_new_tokens=NEW_TOKENS, **settings) for prompt in encoded(made)
    ]
    finishes = {output.finish for one in result.generated.results for output in one.outputs}
    assert finishes == {"stop", "length"}


def test_the_best_beams_alone(engine: Path) -> None:
    every = tokens_of(generated(engine, input_text=TEXTS, num_beams=3))
    best = tokens_of(generated(engine, input_text=TEXTS, num_beams=3, num_return_sequences=2))
    assert best == [beams[:2] for beams in every]


def test_an_end_and_none(made: Made, engine: Path) -> None:
    ((free,),) = tokens_of(generated(engine, input_text=TEXTS[:1]))
    ((ended,),) = tokens_of(generated(engine, input_text=TEXTS[:1], end_id=free[4]))
    assert ended == free[: free.index(free[4]) + 1]
    assert tokens_of(generated(engine, input_text=TEXTS[:1], end_id=-1)) == [[free]]


def test_penalties_are_those_of_transformers(made: Made, engine: Path) -> None:
    expected = [
        made.generated(prompt, max_new_tokens=NEW_TOKENS, repetition_penalty=1.5) for prompt in encoded(made)
    ]
    assert tokens_of(generated(engine, input_text=TEXTS, repetition_penalty=1.5)) == expected
    assert tokens_of(generated(engine, input_text=TEXTS)) != expected


def test_the_same_seed_gives_the_same_samples(engine: Path) -> None:
    choice = {"input_text": TEXTS, "top_k": 0, "temperature": 1.0, "num_return_sequences": 2}
    first, again = (tokens_of(generated(engine, seed=5, **choice)) for _ in range(2))
    assert first == again != tokens_of(generated(engine, seed=6, **choice))
    assert all(one != other for one, other in first)
    ((alone, _),) = tokens_of(generated(engine, seed=5, **{**choice, "input_text": TEXTS[1:2]}))
    assert alone == first[1][0]


def test_guesses_change_nothing(engine: Path) -> None:
    plain = tokens_of(generated(engine, input_text=TEXTS))
    assert tokens_of(generated(engine, input_text=TEXTS, prompt_lookup_num_tokens=3)) == plain


def test_barred_words_and_stop_words(made: Made, engine: Path) -> None:
    ((free,),) = tokens_of(generated(engine, input_text=TEXTS[:1]))
    place, word = next(
        (place, made.tokenizer.decode([token]))
        for place, token in enumerate(free[2:], 2)
        if made.tokenizer.encode(made.tokenizer.decode([token])) == [token] and token not in free[:place]
    )
    ((barred,),) = tokens_of(generated(engine, input_text=TEXTS[:1], bad_words=[word]))
    assert barred[:place] == free[:place] and free[place] not in barred
    ((stopped,),) = tokens_of(generated(engine, input_text=TEXTS[:1], stop_words=["never", word]))
    result = generated(engine, input_text=TEXTS[:1], stop_words=[word]).generated.results[0].outputs[0]
    assert stopped == free[: place + 1] and result.finish == "stop"
    assert result.text == made.tokenizer.decode(free).partition(word)[0]


def test_texts_as_they_come_are_the_same(engine: Path) -> None:
    out = StringIO()
    result = generated(engine, out, input_text=TEXTS[:1], streaming=True, streaming_interval=3)
    assert result.to_text() == ""
    assert out.getvalue() == generated(engine, input_text=TEXTS[:1]).to_text() + "\n"


def test_every_file_says_the_same(made: Made, engine: Path, tmp_path: Path) -> None:
    names = ("output_csv", "output_npy", "output_json", "output_logits_npy", "output_log_probs_npy")
    files = {name: tmp_path / name for name in names}
    end = tokens_of(generated(engine, input_text=TEXTS))[0][0][5]
    result = generated(engine, input_text=TEXTS, end_id=end, **files)
    assert result.to_text().splitlines() == [f"wrote {files[name]}" for name in names]
    texts = [outputs[0] for outputs in tokens_of(result)]
    rows = files["output_csv"].read_text().splitlines()
    assert [[int(token) for token in row.split(",")] for row in rows] == texts
    length = max(map(len, texts))
    array = np.load(files["output_npy"])
    assert array.tolist() == [[text + [end] * (length - len(text))] for text in texts]
    assert min(map(len, texts)) < length == NEW_TOKENS
    document = json.loads(files["output_json"].read_text())
    assert [one["outputs"][0]["tokens"] for one in document["results"]] == texts
    assert [one["prompt"] for one in document["results"]] == [
        {"text": text, "tokens": tokens} for text, tokens in zip(TEXTS, encoded(made), strict=True)
    ]
    check_scores(made, texts, np.load(files["output_logits_npy"]), np.load(files["output_log_probs_npy"]))


def check_scores(made: Made, texts: list[list[int]], logits: Any, log_probs: Any) -> None:
    """What Transformers' model says of the same tokens."""
    assert logits.shape == (*log_probs.shape, 410)
    for number, (prompt, text) in enumerate(zip(encoded(made), texts, strict=True)):
        with torch.no_grad():
            rows = made.model(torch.tensor([prompt + text])).logits[0, len(prompt) - 1 : -1]
        chosen = rows.log_softmax(-1)[torch.arange(len(text)), text]
        np.testing.assert_allclose(logits[number, 0, : len(text)], rows, atol=1e-4)
        np.testing.assert_allclose(log_probs[number, 0, : len(text)], chosen, atol=1e-4)
        assert not logits[number, 0, len(text) :].any() and not log_probs[number, 0, len(text) :].any()


def test_tokens_in_and_out_without_a_tokenizer(made: Made, wordless: Path, tmp_path: Path) -> None:
    prompts = encoded(made)
    padded = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    np.save(tmp_path / "in.npy", padded)
    (tmp_path / "in.csv").write_text("\n".join(",".join(map(str, prompt)) for prompt in prompts))
    expected = [made.generated(prompt, max_new_tokens=NEW_TOKENS) for prompt in prompts]
    from_csv = generated(wordless, input_file=tmp_path / "in.csv")
    assert tokens_of(from_csv) == expected
    assert tokens_of(generated(wordless, input_file=tmp_path / "in.npy", pad_id=0)) == expected
    assert from_csv.to_text().splitlines()[:2] == [
        f"Input [Text 0]: {prompts[0]}",
        f"Output [Text 0 Beam 0]: {expected[0][0]}",
    ]


def test_a_tokenizer_may_be_named(made: Made, wordless: Path) -> None:
    result = generated(wordless, input_text=TEXTS[:1], tokenizer_dir=made.folder / "model")
    assert tokens_of(result)[0] == made.generated(encoded(made)[0], max_new_tokens=NEW_TOKENS)


def test_a_sentencepiece_model_alone(made: Made, wordless: Path, tmp_path: Path) -> None:
    """As a folder of Meta's has it: LLaMA's texts begin with a token."""
    engine = shutil.copytree(wordless, made.folder / "pieces")
    model = train(tmp_path, "unigram", "identity")
    (engine / "tokenizer").mkdir()
    shutil.copy(model, engine / "tokenizer" / "tokenizer.model")
    known = sentencepiece.SentencePieceProcessor(model_file=str(model))
    result = generated(engine, input_text=TEXTS[:1])
    prompt = [known.bos_id(), *known.encode(TEXTS[0])]
    assert list(result.generated.results[0].prompt) == prompt
    assert tokens_of(result)[0] == made.generated(prompt, max_new_tokens=NEW_TOKENS)
    (engine / "tokenizer" / "tokenizer.model").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"no tokenizer that can be read .*--tokenizer_dir"):
        generated(engine, input_text=TEXTS[:1])


def test_long_prompts_are_cut_where_that_is_asked_for(made: Made, engine: Path) -> None:
    text = "zq " * 20
    with pytest.raises(UserError, match=r"^prompt 1: prompt of \d+ tokens: must have from 1 to 40"):
        generated(engine, input_text=["a", text])
    result = generated(engine, input_text=[text], max_input_length=40)
    prompt = made.tokenizer.encode(text)[-40:]
    assert tokens_of(result) == [made.generated(prompt, max_new_tokens=NEW_TOKENS)]


def test_texts_that_the_engine_cuts_are_noted(engine: Path) -> None:
    base = ("run", "--engine_dir", engine, "--input_text", "a", "--max_output_len")
    noted = rankforge(*base, 100_000, "--json")
    (output,) = json.loads(noted.stdout)["results"][0]["outputs"]
    room = len(output["tokens"])
    said, _ = noted.stderr.splitlines()
    assert said.startswith(f"note: --max_output_len=100000: there is room for {room} tokens ")
    assert "note" not in rankforge(*base, room).stderr


def test_a_small_cache_is_enough_for_one_after_another(engine: Path) -> None:
    plain = tokens_of(generated(engine, input_text=TEXTS))
    assert tokens_of(generated(engine, input_text=TEXTS, max_tokens_in_paged_kv_cache=47)) == plain


REFUSED = [
    ({"num_beams": 4}, "num_beams=4: more than max_beam_width=3"),
    ({"num_return_sequences": 13}, "13 texts at once: more than max_batch_size=4"),
    ({"max_attention_window_size": 9}, "--max_attention_window_size=9: "),
    ({"max_tokens_in_paged_kv_cache": 7}, "--max_tokens_in_paged_kv_cache=7: a block of the"),
    ({"max_tokens_in_paged_kv_cache": 8}, "may take 2 blocks of the cache, which has 1"),
    ({"output_csv": Path("/no/such/folder/x")}, "--output_csv=/no/such/folder/x: there is no folder"),
    ({"input_file": Path("/no/such/file")}, "--input_file=/no/such/file: cannot be read"),
    ({"end_id": 410}, "--end_id=410"),
    ({"bad_words": ["the fox"]}, "--bad_words='the fox'"),
    ({"tokenizer_dir": Path("/no/such/folder")}, "--tokenizer_dir=/no/such/folder: no such folder"),
    ({"engine_dir": Path("/no/such/folder")}, "/no/such/folder: not a rankforge-engine"),
    ({"streaming": True, "json": True}, "--streaming"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=lambda value: "".join(value)[:20])
def test_refusals_come_before_the_engine_is_loaded(
    engine: Path, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.run, "open_generator", None)
    text = {} if "input_file" in options else {"input_text": ["hello"]}
    with pytest.raises(UserError) as raised:
        generated(**{"engine_dir": engine, **text, **options})
    assert words in str(raised.value)


def test_engines_that_are_not_whole_are_refused(made: Made) -> None:
    part = made.engine("part", tp_size=2, ranks="1")
    with pytest.raises(UserError, match="does not hold rank 0 of 2, only 1; build it with other --ranks"):
        generated(part, input_text=["hello"])
    programs = made.engine("programs", no_weights=True)
    with pytest.raises(UserError, match="holds programs only"):
        generated(programs, input_text=["hello"])


@pytest.mark.parametrize("options", [{"streaming": True}, {"stop_words": ["x"]}, {"bad_words": ["x"]}, {}])
def test_what_takes_a_tokenizer_is_refused_without_one(
    wordless: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("1,2")
    prompts = {"input_file": tmp_path / "in.csv"} if options else {"input_text": ["x"]}
    with pytest.raises(UserError, match=r"has no tokenizer; name one with --tokenizer_dir"):
        generated(wordless, **prompts, **options)


def test_the_command(made: Made, engine: Path) -> None:
    base = ("run", "--engine_dir", engine, "--max-output-len", NEW_TOKENS)
    done = rankforge(*base, "--input_text", *TEXTS[:2], "--random_seed", 3)
    assert done.returncode == 0, done.stderr
    # A text may have other ends of lines in it, which a pipe for text reads as this one.
    assert done.stdout.splitlines() == generated(engine, input_text=TEXTS[:2]).to_text().splitlines()
    assert done.stderr.startswith("generated 24 tokens in ") and done.stderr.count("\n") == 1
    as_json = json.loads(rankforge(*base, "--input_text", TEXTS[0], "--json").stdout)
    assert as_json["results"][0]["prompt"]["text"] == TEXTS[0]
    streamed = rankforge(*base, "--input_text", *TEXTS[:1], "--streaming").stdout
    assert streamed == generated(engine, input_text=TEXTS[:1]).to_text() + "\n"


def test_mistakes_are_one_line(engine: Path) -> None:
    base = ("run", "--engine_dir", engine)
    assert "--max_output_len" in one_line_error(rankforge(*base))
    told = one_line_error(rankforge(*base, "--max_output_len", 1, "--medusa_choices", "[[0]]"))
    assert "--prompt_lookup_num_tokens" in told
    assert "prompt 0" in one_line_error(rankforge(*base, "--max_output_len", 1, "--num_beams", 9))


@pytest.mark.parametrize("layout", [{"tp_size": 2}, {"pp_size": 2}], ids=["tp2", "pp2"])
def test_ranks_start_by_themselves(made: Made, layout: dict[str, int]) -> None:
    engine = made.engine("-".join(layout), **layout)
    beams = ("--num_beams", 2, "--output_json", made.folder / "out.json")
    done = rankforge(
        "run", "--engine_dir", engine, "--max_output_len", NEW_TOKENS, "--input_text", *TEXTS, *beams
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("generated ") and done.stderr.count("\n") == 1
    found = json.loads((made.folder / "out.json").read_text())["results"]
    settings = {"num_beams": 2, "num_return_sequences": 2, "early_stopping": True}
    assert [[output["tokens"] for output in one["outputs"]] for one in found] == [
        made.generated(prompt, max_new_tokens=NEW_TOKENS, **settings) for prompt in encoded(made)
    ]
