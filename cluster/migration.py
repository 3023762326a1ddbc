"""What became of the options of the TensorRT-LLM scripts: the table of docs/migration.md, and its advice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """Old options and what serves their purpose here, in Markdown as the page has it."""

    old: str
    here: str
    gone: bool = True
    """No command of ours takes them: who gives one is told `here`."""

    def options(self) -> Sequence[str]:
        """Their names alone."""
        return re.findall(r"--\w+", self.old)


def _kept(old: str, here: str = "the same") -> Row:
    return Row(old=old, here=here, gone=False)


def _names(*options: str) -> str:
    return ", ".join(f"`--{option}`" for option in options)


_SHAPES = _names(
    "n_layer", "n_head", "n_kv_head", "n_embd", "n_positions", "inter_size", "vocab_size", "hidden_act",
    "rms_norm_eps", "rotary_base", "rotary_scaling", "moe_num_experts", "moe_top_k", "multi_query_mode",
)  # fmt: skip
_QUANTIZATION = _names(
    "use_weight_only", "weight_only_precision", "smoothquant", "per_channel", "per_token", "int8_kv_cache",
    "group_size", "calib_dataset", "calib_size", "quant_ckpt_path", "use_fp8", "use_fp8_rowwise",
    "fp8_kv_cache", "enable_fp8",
)  # fmt: skip
_PLUGINS = _names(
    "gemm_plugin", "gpt_attention_plugin", "nccl_plugin", "moe_plugin", "remove_input_padding",
    "context_fmha", "paged_kv_cache", "strongly_typed", "disable_weight_only_quant_plugin",
    "dense_context_fmha",
)  # fmt: skip

_ALWAYS = _names(
    "cuda_graph_mode", "kv_cache_enable_block_reuse", "enable_chunked_context", "multi_block_mode",
    "enable_context_fmha_fp32_acc", "use_py_session",
)  # fmt: skip

TABLE = (
    _kept("`--model_dir`", "the same; also a Hugging Face id"),
    Row(old="`--meta_ckpt_dir DIR`", here="`--model_dir DIR`"),
    Row(old="`--nemo_ckpt_path FILE` (`gpt`, GPT-Next)", here="`--model_dir FILE`"),
    _kept("`--output_dir`, `--tp_size`, `--pp_size`, `--workers`"),
    _kept("`--dtype float16`", "the same; `auto` keeps what the source has"),
    Row(
        old="`--moe_tp_size`, `--moe_ep_size N`",
        here="`--ep_size N`; every expert is split over the remaining tp / ep ranks",
    ),
    _kept("`--moe_tp_mode 1`, `--moe_tp_mode 2`", "the same (1 spreads whole experts, 2 splits each)"),
    _kept("`--moe_normalization_mode`", "the same (0 none, 1 renormalize)"),
    Row(old="`--moe_renorm_mode`", here="`--moe_normalization_mode` (0 none, 1 renormalize)"),
    _kept(r"`--use_parallel_embedding --embedding_sharding_dim 0\|1`"),
    Row(
        old="`--use_embedding_sharing`",
        here="not needed: a tied head is stored once wherever a rank holds both",
    ),
    Row(
        old=f"`--gpt_variant`, `--model_type`, and a model's shape: {_SHAPES}",
        here="not needed: read from the checkpoint; without one, `--model_config gpt_175b` or a config.json",
    ),
    Row(
        old="`--load_by_shard`, `--load_model_on_cpu`, `--convert_model_on_cpu`",
        here="not needed: conversion always streams",
    ),
    Row(old="`--save_config_only`", here="`--load_format random`, which stores no weights and needs none"),
    _kept(
        "`trtllm-build --checkpoint_dir --output_dir --workers`",
        "`rankforge build`, the same; add `--engine tensorrt` for plans",
    ),
    _kept(
        "`--strip_plan`", "the same; weights are given to the plan when it is loaded, without `trtllm-refit`"
    ),
    Row(
        old="`--input_timing_cache`, `--output_timing_cache`",
        here="not needed: kept in the store, for every GPU and version",
    ),
    _kept(
        "`trtllm-build --model_config config.json`",
        "the same: also Hugging Face's; the file's `mapping` is the layout unless one is given",
    ),
    Row(old="`--rank 3` of a build", here="`--ranks 3`; also `0,2-3`"),
    _kept(
        "`--max_batch_size`, `--max_input_len`, `--max_seq_len`, `--max_num_tokens`, `--max_beam_width`, "
        "`--tokens_per_block`"
    ),
    _kept(
        "`--max_attention_window_size N` of `run.py` and `summarize.py`",
        "`rankforge build --max_attention_window_size N`, one size for all layers; `run` and `summarize` "
        "check that the engine has it",
    ),
    Row(old=_PLUGINS, here="not needed: there are no plugins to choose"),
    Row(old=_QUANTIZATION, here="not there yet: comes with `rankforge quantize`"),
    _kept(
        "`run.py --engine_dir --tokenizer_dir --input_text --input_file --max_output_len`",
        "`rankforge run`, the same; without `mpirun`: ranks start by themselves, or with `--address` on a "
        "running Ray cluster",
    ),
    _kept("`--max_input_length N`", "the same: the last N tokens; without it, longer prompts are refused"),
    _kept(
        "`--num_beams`, `--num_return_sequences`, `--temperature`, `--top_k`, `--top_p`, `--min_p`, "
        "`--length_penalty`, `--early_stopping`, `--repetition_penalty`, `--presence_penalty`, "
        "`--frequency_penalty`, `--random_seed`, `--end_id`, `--no_add_special_tokens`, `--streaming`, "
        "`--streaming_interval`, `--kv_cache_free_gpu_memory_fraction`, `--max_tokens_in_paged_kv_cache`"
    ),
    _kept("`--stop_words`", "the same, for all prompts; they end a text wherever they are in it"),
    _kept("`--bad_words`", "the same, for all prompts; words of one token"),
    _kept(
        "`--output_csv`, `--output_npy`",
        "the same without the prompts' tokens; the array is [prompts, texts, tokens]",
    ),
    _kept("`--output_logits_npy`", "the generated tokens' logits, in the very file that is named"),
    _kept("`--output_log_probs_npy`"),
    Row(old="`--output_cum_log_probs_npy`", here="not needed: sum what `--output_log_probs_npy` holds"),
    Row(
        old="`--tokenizer_type`, `--vocab_file`",
        here="`--tokenizer_dir DIR`; the engine's own `tokenizer.model` is read without it",
    ),
    Row(old="`--prompt_lookup_config [10,2,[0]]`", here="`--prompt_lookup_num_tokens 10`"),
    Row(
        old="`--draft_target_model_config`, `--medusa_choices`, `--eagle_choices`, `--lookahead_config`",
        here="not there: `--prompt_lookup_num_tokens` guesses without a second model",
    ),
    Row(old=_ALWAYS, here="not needed: what of it there is, is always on"),
    Row(old="`--no_prompt_template`", here="not needed: texts are taken as they are"),
    Row(old="`--return_all_generated_tokens`", here="not needed: `--streaming` prints what is new"),
    Row(
        old="`--run_profiling`",
        here="not there yet: comes with `rankforge bench`; `rankforge run` says how long it took",
    ),
    Row(
        old="`--lora_dir`, `--lora_ckpt_source`, `--lora_task_uids`, `--prompt_table_path`, "
        "`--prompt_tasks`, `--num_prepend_vtokens`",
        here="not there yet: comes with adapters",
    ),
    Row(
        old="`--beam_search_diversity_rate`, `--no_repeat_ngram_size`, `--sink_token_length`, "
        "`--gpu_weights_percent`, `--cross_kv_cache_fraction`",
        here="not there",
    ),
    _kept(
        "`summarize.py --engine_dir --hf_model_dir --tokenizer_dir --test_trt_llm --test_hf`",
        "`rankforge summarize`, the same without `mpirun`; `--test_trt_llm` also as `--test_engine`",
    ),
    _kept("`--data_type`, `--hf_data_type`", "the same; without it, what the engine computes in"),
    _kept("`--hf_device_map_auto`, `--batch_size`, `--max_ite`, `--output_len`"),
    _kept(
        "`--check_accuracy`, `--tensorrt_llm_rouge1_threshold`, `--tensorrt_llm_ppl_threshold`",
        "the same, also as `--rouge1_threshold` and `--ppl_threshold`; exit code 1 where one is missed",
    ),
    _kept("`--eval_ppl`", "the same, for any batch size and any engine; also of prompts and summaries alone"),
    Row(
        old="`--gather_context_logits`, `--gather_generation_logits`, `--gather_all_token_logits`",
        here="not needed: every engine gives log-probabilities to who asks",
    ),
    Row(
        old="`--dataset_dir`, `--dataset_cache_dir`",
        here="`--dataset FILE` with JSON lines, or an id of the hub; its first articles, not shuffled",
    ),
    Row(
        old="`--eval_task`, `--min_input_length`",
        here="not there: choose the articles with `--dataset FILE`, and the task with `--prompt_template`",
    ),
    Row(old="`--rouge_dir`", here="not needed: the library rouge-score computes it, no metric is fetched"),
    Row(
        old="`--estimate_accuracy_std_dev`",
        here="not needed: `--output_dir DIR` gets the scores of every article",
    ),
)


def advice(option: str) -> str | None:
    """One line for an option that only the old scripts had; None where they had none of that name."""
    for row in TABLE:
        if row.gone and option in row.options():
            text = row.here.replace("`", "")
            return f"use {text}" if text.startswith("--") else text
    return None
