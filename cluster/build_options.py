"""The options of `rankforge build`, under the names that users of the old scripts know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builders.limits import Limits
from cluster.options import option

_ENGINE, _LIMITS, _OUTPUT = "Engine", "Limits", "Output"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, for what, and where to put it."""

    checkpoint_dir: Path = option(help="A checkpoint that `rankforge convert` made.", group=_ENGINE)
    output_dir: Path = option(help="Folder for the engine; it appears whole or not at all.", group=_OUTPUT)
    engine: Literal["torch"] = option("torch", help="The kind of engine.", group=_ENGINE)
    target: Literal["cpu"] = option("cpu", help="What the engine runs on.", group=_ENGINE)
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
    workers: int = option(1, help="Processes that compile programs at the same time.", group=_OUTPUT, least=1)
    store_dir: Path | None = option(
        None,
        help="Where built programs are kept and found again; beside the engine by default.",
        group=_OUTPUT,
    )
    overwrite: bool = option(False, help="Replace another engine in the output folder.", group=_OUTPUT)
    json: bool = option(False, help="Print the result as JSON.", group=_OUTPUT)
