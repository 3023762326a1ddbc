"""The options of `rankforge serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.build_options import BuildOptions
from cluster.convert_options import CheckpointOptions
from cluster.options import argument, option, same
from cluster.run_options import RunOptions
from cluster.serve_config import ENGINES_DIR

_SERVICE, _RUNTIME = "Service", "Runtime"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(CheckpointOptions):
    """What to serve, and where; the options of a build are for a model that has no engine yet."""

    model: str = argument(
        help="A Hugging Face id; or the folder of a model, a checkpoint or an engine; or a YAML file with "
        "several models, which `serve deploy` takes too."
    )
    name: str | None = option(
        None,
        help="What callers name the model by; its folder's or id's last part by default.",
        group=_SERVICE,
    )
    host: str | None = option(
        None,
        help="Address to serve at; 127.0.0.1 by default, which other machines do not reach.",
        group=_SERVICE,
    )
    port: int | None = option(None, help="Its port; 8000 by default.", group=_SERVICE, least=1, most=65535)
    replicas: int = option(1, help="Groups of ranks, each with all of the model.", group=_SERVICE, least=1)
    keys_file: Path | None = option(
        None,
        help="API keys, as `rankforge keys add` makes them; without one, only this machine is served.",
        group=_SERVICE,
    )
    insecure: bool = option(
        False, help="Serve other machines without keys: whoever reaches the port may use it.", group=_SERVICE
    )
    drain_s: float = option(
        30.0, help="How long requests under way may take when the service is to end.", group=_SERVICE, least=0
    )
    tokenizer_dir: Path | None = same(RunOptions, "tokenizer_dir")
    chat_template: Path | None = option(
        None, help="A file with a chat template in Jinja; the tokenizer's own by default.", group=_SERVICE
    )
    engines_dir: Path = option(
        Path(ENGINES_DIR),
        help="Folder for engines that are made, with the store beside them.",
        group=_RUNTIME,
    )
    kv_cache_free_gpu_memory_fraction: float = same(RunOptions, "kv_cache_free_gpu_memory_fraction")
    prompt_lookup_num_tokens: int = same(RunOptions, "prompt_lookup_num_tokens")
    address: str | None = option(
        None, help="A running Ray cluster; by default one of this machine is started.", group=_RUNTIME
    )
    engine: Literal["torch", "tensorrt"] = same(BuildOptions, "engine")
    target: str | None = same(BuildOptions, "target")
    no_compile: bool = same(BuildOptions, "no_compile")
    max_batch_size: int = same(BuildOptions, "max_batch_size")
    max_input_len: int = same(BuildOptions, "max_input_len")
    max_seq_len: int = same(BuildOptions, "max_seq_len")
    max_num_tokens: int = same(BuildOptions, "max_num_tokens")
    max_beam_width: int = same(BuildOptions, "max_beam_width")
    tokens_per_block: int = same(BuildOptions, "tokens_per_block")
    store_dir: str | None = same(BuildOptions, "store_dir")
