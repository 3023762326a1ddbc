"""The options of `rankforge build`, under the names that users of the old scripts know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builders.limits import Limits
from cluster.cluster_options import CLUSTER, ClusterOptions
from cluster.convert_options import SOURCE, CheckpointOptions, ConvertOptions
from cluster.options import option, optional

_ENGINE, _LIMITS, _OUTPUT = "Engine", "Limits", "Output"

TARGETS: Mapping[str, tuple[str, ...]] = {
    "torch": ("cpu", "cuda", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120"),
    "tensorrt": ("current", "sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
}
"""What each kind of engine can be built for; the first is what it is built for unasked."""

_BY_KIND = "; ".join(f"{kind}: {', '.join(targets)}" for kind, targets in TARGETS.items())


@dataclass(frozen=True, kw_only=True)
class BuildOptions(CheckpointOptions, ClusterOptions):
    """What to build, for what, and where to put it; the layout is for a model that is converted first."""

    checkpoint_dir: Path | None = option(
        None, help="A checkpoint that `rankforge convert` made; this, a model or a configuration.",
        group=SOURCE,
    )  # fmt: skip
    model_dir: str | None = optional(ConvertOptions, "model_dir")
    model_config: str | None = option(
        None,
        help="A config.json alone, Hugging Face's or the older TensorRT-LLM checkpoint's, or one that ships "
        "with rankforge (gpt_175b, gpt_530b): weights are made up at random.",
        group=SOURCE,
    )
    no_weights: bool = option(
        False,
        help="Programs only, whatever the model's size. Build again from the model's checkpoint when it is "
        "there: its weights are linked, and the programs are found in the store.",
        group=SOURCE,
    )
    ranks: str | None = option(
        None, help="Build these ranks alone, such as 0 or 0,2-3; all by default.", group=_ENGINE
    )
    output_dir: Path = option(help="Folder for the engine; it appears whole or not at all.", group=_OUTPUT)
    engine: Literal["torch", "tensorrt"] = option("torch", help="The kind of engine.", group=_ENGINE)
    target: str | None = option(
        None, help=f"What it runs on; the first by default. {_BY_KIND}.", group=_ENGINE
    )
    trt_library: Literal["auto", "tensorrt", "tensorrt_rtx"] = option(
        "auto",
        help="tensorrt_rtx builds for RTX GPUs on any machine, tensorrt for the GPU at hand; "
        "auto takes what the target needs.",
        group=_ENGINE,
    )
    strip_plan: bool = option(
        False,
        help="TensorRT plans without weights, which are given to them when they are loaded: equal ranks "
        "share one, and building takes no memory for weights.",
        group=_ENGINE,
    )
    no_compile: bool = option(
        False, help="Run the exported graph as it is: nothing to wait for, slower to run.", group=_ENGINE
    )
    max_batch_size: int = option(Limits.max_batch_size, help="Sequences in one step.", group=_LIMITS)
    max_input_len: int = option(Limits.max_input_len, help="Tokens of a prompt.", group=_LIMITS)
    max_seq_len: int = option(
        Limits.max_seq_len, help="Tokens of a prompt and what follows it.", group=_LIMITS
    )
    max_num_tokens: int = option(
        Limits.max_num_tokens, help="Tokens of one step, over all sequences.", group=_LIMITS
    )
    max_beam_width: int = option(Limits.max_beam_width, help="Beams of one request.", group=_LIMITS)
    tokens_per_block: int = option(
        Limits.tokens_per_block, help="Tokens in one block of the paged cache.", group=_LIMITS
    )
    max_attention_window_size: int | None = option(
        Limits.max_attention_window_size,
        help="Tokens that attention sees at most, itself included, in every layer; by default as many as the "
        "model itself does.",
        group=_LIMITS,
    )
    store_limit: str | None = option(
        None,
        help="Afterwards, evict the least recently used of the store beyond this, such as 200GB; of its "
        "cache alone where it is a URL. What is pinned, and what this build used, stays.",
        group=_OUTPUT,
    )
    accelerator_type: str | None = option(
        None, help="On a cluster, the GPU to build for, as Ray names it: H100.", group=CLUSTER
    )
    overwrite: bool = option(False, help="Replace another engine in the output folder.", group=_OUTPUT)
    json: bool = option(False, help="Print the result as JSON.", group=_OUTPUT)
