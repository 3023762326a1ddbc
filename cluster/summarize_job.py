"""All that `rankforge summarize` needs to know before it loads a model: inputs that are there, and right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from actors.open_generator import ends_of
from actors.sampling_params import SamplingParams
from builders.engine_manifest import EngineManifest
from builders.errors import SourceError, UserError
from cluster.dataset import Article, read_articles
from cluster.engine_of import engine_of
from cluster.hub import fetch
from cluster.prompts import check_prompts
from cluster.rouge import Scorer
from cluster.summaries import Prompt, Prompter
from cluster.summarize_checks import check_engine, check_options
from cluster.summarize_options import SummarizeOptions
from cluster.summarize_outputs import SummaryFiles
from cluster.tokenizer import open_tokenizer

ENGINE, TRANSFORMERS = "engine", "transformers"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be done."""

    options: SummarizeOptions
    names: tuple[str, ...]
    """Of the models that summarize, in order."""
    model: Path | None
    """Where the model lies that Transformers loads."""
    dtype: str
    """What it computes in."""
    tokenizer: PreTrainedTokenizerBase
    ends: tuple[int, ...] | None
    """The tokens that end a text; None where only Transformers knows."""
    params: SamplingParams
    articles: tuple[Article, ...]
    prompts: tuple[Prompt, ...]
    scorer: Scorer
    files: SummaryFiles

    @property
    def batches(self) -> list[slice]:
        """Articles that are summarized at the same time."""
        size = self.options.batch_size
        return [slice(at, at + size) for at in range(0, len(self.prompts), size)]


def prepared(options: SummarizeOptions) -> Job:
    """The cheapest checks come first, what is fetched comes last."""
    check_options(options)
    manifest = (
        engine_of(options.engine_dir, options.max_attention_window_size) if options.engine_dir else None
    )
    if manifest and options.test_engine:
        check_engine(options, manifest)
    names = tuple(name for name, wanted in _wanted(options).items() if wanted)
    scorer = Scorer()
    articles = tuple(
        read_articles(options.dataset, options.dataset_split, options.max_ite * options.batch_size)
    )
    model = _model(options)
    tokenizer = _tokenizer(options, model)
    ends = _ends(options, tokenizer)
    prompts = tuple(map(_prompter(options, tokenizer).prompt, articles))
    if manifest:
        check_prompts("--dataset", prompts, manifest.checkpoint.spec.vocab_size)
    return Job(
        options=options,
        names=names,
        model=model,
        dtype=_dtype(options, manifest),
        tokenizer=tokenizer,
        ends=ends,
        params=_params(options, ends),
        articles=articles,
        prompts=prompts,
        scorer=scorer,
        files=SummaryFiles(options.output_dir, names),
    )


def _wanted(options: SummarizeOptions) -> dict[str, bool]:
    return {ENGINE: options.test_engine, TRANSFORMERS: options.test_hf}


def _model(options: SummarizeOptions) -> Path | None:
    if options.hf_model_dir is None or not options.test_hf:
        return None
    found = fetch(options.hf_model_dir, revision=None, offline=False).path
    if not (found / "config.json").is_file():
        raise SourceError(
            f"--hf_model_dir={options.hf_model_dir}: no folder of Hugging Face's, with a config.json"
        )
    return found


def _tokenizer(options: SummarizeOptions, model: Path | None) -> PreTrainedTokenizerBase:
    """The one that was named, else the engine's, else the model's."""
    named = options.tokenizer_dir
    found = open_tokenizer(options.engine_dir, named) if options.engine_dir else None
    if found is None and (named or model):
        found = open_tokenizer(Path(), named or model)
    if found is None:
        raise UserError(f"{options.engine_dir}: has no tokenizer; name one with --tokenizer_dir")
    return found


def _prompter(options: SummarizeOptions, tokenizer: PreTrainedTokenizerBase) -> Prompter:
    return Prompter(
        tokenizer=tokenizer,
        template=options.prompt_template,
        max_tokens=options.max_input_length,
        add_special_tokens=not options.no_add_special_tokens,
    )


def _dtype(options: SummarizeOptions, manifest: EngineManifest | None) -> str:
    if options.hf_data_type != "auto":
        return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}.get(
            options.hf_data_type, options.hf_data_type
        )
    return manifest.checkpoint.dtype if manifest else "auto"


def _ends(options: SummarizeOptions, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
    """What was asked for, else the engine's, else its tokenizer's."""
    if options.end_id is not None:
        return () if options.end_id < 0 else (options.end_id,)
    if options.engine_dir is None:
        return None
    own = tokenizer.eos_token_id
    return ends_of(options.engine_dir) or (() if own is None else (own,))


def _params(options: SummarizeOptions, ends: tuple[int, ...] | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.output_len,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p or 1.0,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
        n=options.num_beams,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        early_stopping=bool(options.early_stopping),
        ignore_eos=ends is not None,
        stop_token_ids=ends or (),
    )
