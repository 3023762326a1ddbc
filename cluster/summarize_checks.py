"""What `rankforge summarize` refuses before it loads anything, and the accuracy that it asks for after."""

from __future__ import annotations

from builders.engine_manifest import EngineManifest
from builders.errors import AccuracyError, UserError
from cluster.prompts import readable
from cluster.summaries import ARTICLE
from cluster.summarize_options import SummarizeOptions
from cluster.summarize_report import Column


def check_options(options: SummarizeOptions) -> None:
    """Refuse what does not go together."""
    if not (options.test_engine or options.test_hf):
        raise UserError("nothing summarizes; add --test_engine, --test_hf or both")
    if options.test_engine and options.engine_dir is None:
        raise UserError("--test_engine: there is no engine; add --engine_dir DIR")
    if options.test_hf and options.hf_model_dir is None:
        raise UserError("--test_hf: there is no model; add --hf_model_dir with an id or a folder")
    if ARTICLE not in readable("--prompt_template", options.prompt_template):
        raise UserError(
            f"--prompt_template={options.prompt_template!r}: has no place for the article; write {ARTICLE}"
        )
    if options.eval_ppl and options.num_beams > 1 and options.repetition_penalty != 1:
        raise UserError(
            f"--eval_ppl: with --num_beams={options.num_beams}, --repetition_penalty="
            f"{options.repetition_penalty:g} is part of the scores; leave one of the three out"
        )
    _check_thresholds(options)


def _check_thresholds(options: SummarizeOptions) -> None:
    if options.check_accuracy and not options.test_engine:
        raise UserError("--check_accuracy: is of the engine; add --test_engine, or leave it out")
    needs = {"rouge1_threshold": ("check_accuracy",), "ppl_threshold": ("check_accuracy", "eval_ppl")}
    for name, needed in needs.items():
        for other in needed:
            if name in options.given and not getattr(options, other):
                value = getattr(options, name)
                raise UserError(f"--{name}={value:g}: nothing is checked without --{other}; add it")


def check_engine(options: SummarizeOptions, manifest: EngineManifest) -> None:
    """Refuse what the engine was not built for."""
    limits, vocab_size = manifest.limits, manifest.checkpoint.spec.vocab_size
    if options.end_id is not None and options.end_id >= vocab_size:
        raise UserError(
            f"--end_id={options.end_id}: the model's tokens are 0 to {vocab_size - 1}; -1 ends no text"
        )
    total = options.max_input_length + options.output_len
    needed = (
        (f"--max_input_length={options.max_input_length}", options.max_input_length, "max_input_len"),
        (f"--max_input_length and --output_len: {total} tokens", total, "max_seq_len"),
        (f"--num_beams={options.num_beams}", options.num_beams, "max_beam_width"),
    )
    for what, value, limit in needed:
        if value > (most := getattr(limits, limit)):
            raise UserError(
                f"{what}: {options.engine_dir} takes {most}; use less, or build it with --{limit} {value}"
            )


def check_accuracy(options: SummarizeOptions, engine: Column) -> None:
    """Of the best beam."""
    rouge1 = engine.rouge[0].rouge1
    if rouge1 <= options.rouge1_threshold:
        raise AccuracyError(
            f"ROUGE-1 {rouge1:.2f} is not above --rouge1_threshold {options.rouge1_threshold:g}"
        )
    perplexity = engine.perplexity[0].both if engine.perplexity else None
    if perplexity is not None and not perplexity < options.ppl_threshold:
        raise AccuracyError(
            f"perplexity {perplexity:.3f} is not below --ppl_threshold {options.ppl_threshold:g}"
        )
