"""The options of `rankforge summarize`, under the names that users of the old script know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.options import given, option, same
from cluster.run_options import RunOptions

_MODELS, _INPUT, _CHOICE, _BEAMS, _CHECKS, _OUTPUT, _RUNTIME = (
    "Models", "Input", "Choice of tokens", "Beam search", "Checks", "Output", "Runtime",
)  # fmt: skip

DataType = Literal["auto", "float32", "float16", "bfloat16", "fp32", "fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class SummarizeOptions:
    """What summarizes, what is summarized, and how."""

    engine_dir: Path | None = option(None, help="An engine that `rankforge build` made.", group=_MODELS)
    hf_model_dir: str | None = option(
        None,
        help="Hugging Face id or folder of the model that the engine was made from.",
        group=_MODELS,
        also="model_dir",
    )
    tokenizer_dir: Path | None = option(
        None, help="A folder with the tokenizer; the engine's own by default, or the model's.", group=_MODELS
    )
    test_engine: bool = option(False, help="Summarize with the engine.", group=_MODELS, also="test_trt_llm")
    test_hf: bool = option(False, help="Summarize with the model in Transformers.", group=_MODELS)
    hf_data_type: DataType = option(
        "auto",
        help="What the model computes in; auto takes the engine's, or else the model's own.",
        group=_MODELS,
        also="data_type",
    )
    hf_device_map_auto: bool = option(
        False,
        help="Spread the model over all GPUs, where one is too small; takes the library accelerate.",
        group=_MODELS,
    )
    dataset: str = option(
        "abisee/cnn_dailymail:3.0.0",
        help='A JSONL file with the texts "article" and "highlights" in every line; or a dataset of the hub, '
        "as id or id:configuration, which takes the library datasets.",
        group=_INPUT,
    )
    dataset_split: str = option("test", help="The part of a dataset of the hub.", group=_INPUT)
    max_ite: int = option(
        20, help="Batches at most: the articles are the dataset's first.", group=_INPUT, least=1
    )
    batch_size: int = option(1, help="Articles that are summarized at the same time.", group=_INPUT, least=1)
    max_input_length: int = option(
        923, help="Of longer prompts take so many tokens, the last.", group=_INPUT, least=1
    )
    prompt_template: str = option(
        "{article} TL;DR:",
        help="The prompt, with {article} where it has the article. White space around it is left out.",
        group=_INPUT,
    )
    no_add_special_tokens: bool = same(RunOptions, "no_add_special_tokens")
    output_len: int = option(100, help="Tokens to generate at most.", group=_CHOICE, least=1)
    end_id: int | None = same(RunOptions, "end_id")
    top_k: int = same(RunOptions, "top_k")
    top_p: float = same(RunOptions, "top_p")
    temperature: float = same(RunOptions, "temperature")
    seed: int = same(RunOptions, "seed")
    repetition_penalty: float = same(RunOptions, "repetition_penalty")
    num_beams: int = same(RunOptions, "num_beams")
    length_penalty: float = same(RunOptions, "length_penalty")
    early_stopping: int = same(RunOptions, "early_stopping")
    eval_ppl: bool = option(
        False,
        help="Measure perplexity too: one over the likelihood of a token, of prompts and summaries. It takes "
        "another pass over the prompts, which is not timed.",
        group=_CHECKS,
    )
    check_accuracy: bool = option(
        False, help="Exit with 1 where the engine is worse than the thresholds.", group=_CHECKS
    )
    rouge1_threshold: float = option(
        15.0,
        help="What ROUGE-1 must be above, where accuracy is checked.",
        group=_CHECKS,
        least=0,
        most=100,
        also="tensorrt_llm_rouge1_threshold",
    )
    ppl_threshold: float = option(
        15.0,
        help="What perplexity must be below, where it is measured and accuracy is checked.",
        group=_CHECKS,
        least=0,
        also="tensorrt_llm_ppl_threshold",
    )
    output_dir: Path | None = option(
        None,
        help="Folder for every article's summaries and what they are worth, a JSONL file a model.",
        group=_OUTPUT,
    )
    json: bool = option(False, help="Print the table as JSON.", group=_OUTPUT)
    kv_cache_free_gpu_memory_fraction: float = same(RunOptions, "kv_cache_free_gpu_memory_fraction")
    max_attention_window_size: int | None = same(RunOptions, "max_attention_window_size")
    address: str | None = same(RunOptions, "address")
    given: frozenset[str] = given()
