"""The options of `rankforge convert`, under the names that users of the old scripts know."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.cluster_options import ClusterOptions
from cluster.options import declared, given, option

_LAYOUT, SOURCE, _OUTPUT = "Layout", "Source", "Output"


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """How a model is spread over ranks."""

    tp_size: int = option(1, help="Tensor parallel ranks: each holds a part of every layer.", group=_LAYOUT)
    pp_size: int = option(1, help="Pipeline stages: each holds some of the layers.", group=_LAYOUT)
    ep_size: int | None = option(
        None,
        help="Expert parallel ranks among the tensor parallel ones: each holds whole experts.",
        group=_LAYOUT,
    )
    moe_tp_mode: int | None = option(
        None, help="The older way to say it: 1 spreads whole experts, 2 splits every expert.", group=_LAYOUT,
        least=1, most=2,
    )  # fmt: skip
    use_parallel_embedding: bool = option(
        False, help="Split the token embedding over the tensor parallel ranks.", group=_LAYOUT
    )
    embedding_sharding_dim: int = option(
        0, help="With --use_parallel_embedding: 0 splits the vocabulary, 1 the hidden dimension.",
        group=_LAYOUT, least=0, most=1,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(LayoutOptions):
    """How a checkpoint is made from a model: shared by every command that makes one."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", help="What weights are stored as; auto keeps what the source has.", group=_OUTPUT
    )
    moe_normalization_mode: int | None = option(
        None, help="Expert weights: 0 softmax then top-k, 1 top-k then softmax. Default: the model's own.",
        group=_LAYOUT, least=0, most=1,
    )  # fmt: skip
    seed: int = option(0, help="Of random weights.", group=SOURCE, least=0)
    revision: str | None = option(None, help="Branch, tag or commit of a Hugging Face id.", group=SOURCE)
    offline: bool = option(False, help="Use the local Hugging Face cache only.", group=SOURCE)
    ignore_config_field: list[str] = option(
        [],
        help="A configuration field that is not understood and known not to matter; repeatable.",
        group=SOURCE,
    )
    given: frozenset[str] = given()
    """Options that stood on the command line, even with the values they have anyway."""

    def chosen(self, options: type[Any]) -> list[str]:
        """Those of another class's options that were given, or differ from what they are by default."""
        return [
            field.name
            for field in declared(options)
            if field.name in self.given or getattr(self, field.name) != _default(field)
        ]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(CheckpointOptions, ClusterOptions):
    """What to convert, how to split it, and where to put it."""

    model_dir: str = option(
        help="Hugging Face id, or a folder in Hugging Face's or Meta's layout, or a .nemo archive.",
        group=SOURCE,
    )
    output_dir: Path = option(help="Folder for the shards; it appears whole or not at all.", group=_OUTPUT)
    load_format: Literal["auto", "random"] = option(
        "auto",
        help="random needs only a config.json: weights are made up when they are loaded, nothing is stored.",
        group=SOURCE,
    )
    overwrite: bool = option(False, help="Replace another checkpoint in the output folder.", group=_OUTPUT)
    json: bool = option(False, help="Print the result as JSON.", group=_OUTPUT)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else []
