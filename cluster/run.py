"""`rankforge run`: prompts in, texts out, from an engine of any layout."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from transformers import PreTrainedTokenizerBase

from actors.detokenizer import Words
from actors.open_generator import GeneratorOptions, open_generator
from actors.sampling_params import SamplingParams
from builders.engine_manifest import EngineManifest
from builders.errors import UserError
from cluster.engine_of import engine_of
from cluster.generation import check, generate
from cluster.prompts import Row, check_prompts, prompts_of, read_inputs
from cluster.ray_cluster import join, warn_of_open_door
from cluster.run_choice import barred, check_choice, choice_of
from cluster.run_options import RunOptions
from cluster.run_outputs import Generated, check_outputs, write_outputs
from cluster.token_ends import Ends, ends_of
from cluster.tokenizer import open_tokenizer
from cluster.transcript import Stream, prompt_line, transcript


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What was generated, and where it was put."""

    generated: Generated
    sampled: bool
    """Texts of a prompt are independent samples, not beams."""
    shown: bool
    """It was printed as it came."""
    files: Sequence[Path] = ()
    """Where it was written."""

    def to_json(self) -> dict[str, Any]:
        return self.generated.to_json()

    def to_text(self) -> str:
        """The files where there are any, else all that was generated."""
        if self.files or self.shown:
            return "\n".join(f"wrote {file}" for file in self.files)
        return transcript(self.generated, sampled=self.sampled)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """Everything that is known, and right, before the engine is loaded."""

    prompts: Sequence[Row]
    params: SamplingParams
    ends: Ends
    tokenizer: PreTrainedTokenizerBase | None
    generator: GeneratorOptions
    room: int
    """Tokens that the engine has after the longest prompt."""

    @property
    def sampled(self) -> bool:
        return self.params.num_beams == 1 < self.params.n

    @property
    def prompt_texts(self) -> list[str | None]:
        """As the model gets them."""
        tokenizer = self.tokenizer
        return [str(tokenizer.decode(list(one))) if tokenizer else None for one in self.prompts]


def run(options: RunOptions, out: TextIO, notes: TextIO) -> RunResult:
    """Check everything, load, generate, write."""
    for note in check_choice(options):
        print(note, file=notes)
    prepared = _prepare(options)
    if options.max_output_len > prepared.room:
        print(
            f"note: --max_output_len={options.max_output_len}: there is room for {prepared.room} tokens "
            "after the longest prompt; build the engine with a larger --max_seq_len for more",
            file=notes,
        )
    stream = _stream(prepared, options.streaming_interval, out)
    how = replace(prepared.generator, address=join(options.address))
    clock = [time.monotonic()]
    with open_generator(options.engine_dir, how) as generator, closing(stream):
        clock.append(time.monotonic())
        warn_of_open_door(notes)
        words = Words(prepared.tokenizer) if prepared.tokenizer else None
        hear = stream.hear if options.streaming else None
        results = generate(generator, prepared.prompts, prepared.params, words=words, on_piece=hear)
        clock.append(time.monotonic())
    generated = Generated(
        results=results,
        prompt_texts=prepared.prompt_texts,
        fill=prepared.ends.fill,
        seconds={"load": round(clock[1] - clock[0], 3), "generate": round(clock[2] - clock[1], 3)},
    )
    print(_summary(generated), file=notes)
    files = write_outputs(options, generated)
    return RunResult(generated=generated, sampled=prepared.sampled, shown=options.streaming, files=files)


def _prepare(options: RunOptions) -> _Prepared:
    """The cheapest checks come first."""
    check_outputs(options)
    params, inputs = choice_of(options), read_inputs(options)
    manifest = engine_of(options.engine_dir, options.max_attention_window_size)
    vocab_size = manifest.checkpoint.spec.vocab_size
    tokenizer = open_tokenizer(options.engine_dir, options.tokenizer_dir)
    if tokenizer is None:
        _check_without_words(options)
    ends = ends_of(options, tokenizer, vocab_size)
    prompts = prompts_of(inputs, options, tokenizer, ends.pad)
    check_prompts(inputs.name, prompts, vocab_size)
    params = replace(params, logit_bias=barred(options.bad_words, tokenizer, vocab_size))
    if ends.stops is not None:
        params = replace(params, ignore_eos=True, stop_token_ids=ends.stops)
    generator = _generator_options(options, manifest)
    check(prompts, params, manifest.limits, generator.num_blocks)
    return _Prepared(
        prompts=prompts,
        params=params,
        ends=ends,
        tokenizer=tokenizer,
        generator=generator,
        room=manifest.limits.max_seq_len - max(map(len, prompts)),
    )


def _check_without_words(options: RunOptions) -> None:
    for name in ("stop_words", "streaming"):
        if value := getattr(options, name):
            raise UserError(
                f"--{name}={value}: {options.engine_dir} has no tokenizer; name one with --tokenizer_dir"
            )


def _generator_options(options: RunOptions, manifest: EngineManifest) -> GeneratorOptions:
    return GeneratorOptions(
        num_blocks=_num_blocks(options.max_tokens_in_paged_kv_cache, manifest.limits.tokens_per_block),
        kv_cache_free_gpu_mem_fraction=options.kv_cache_free_gpu_memory_fraction,
        draft_tokens=options.prompt_lookup_num_tokens,
    )


def _num_blocks(tokens: int | None, tokens_per_block: int) -> int | None:
    if tokens is None:
        return None
    if tokens < tokens_per_block:
        raise UserError(
            f"--max_tokens_in_paged_kv_cache={tokens}: a block of the engine's cache has {tokens_per_block}; "
            "use that many or more"
        )
    return tokens // tokens_per_block


def _stream(prepared: _Prepared, interval: int, out: TextIO) -> Stream:
    texts = zip(prepared.prompt_texts, prepared.prompts, strict=True)
    lines = [prompt_line(number, text, tokens) for number, (text, tokens) in enumerate(texts)]
    return Stream(out, lines, interval, sampled=prepared.sampled)


def _summary(generated: Generated) -> str:
    tokens = sum(result.usage.output_tokens for result in generated.results)
    load, seconds = generated.seconds["load"], generated.seconds["generate"]
    return (
        f"generated {tokens} tokens in {seconds:.2f} s ({tokens / max(seconds, 1e-9):.1f} a second), "
        f"loaded in {load:.2f} s"
    )
