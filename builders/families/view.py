"""Where a whole parameter lies in the tensors of a source checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from builders.families.fields import Fields
from builders.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class View:
    """Blocks of rows of a source tensor; all leading dimensions count as rows, the last as columns.

    The parameter's rows are cut into blocks of `block` rows; block n starts at row
    offset + n · stride of the source. With block 0 the parameter is one block.
    """

    source: str
    """The source's name without the leaf; `{i}` is the layer, `{e}` the expert."""
    transposed: bool = False
    """A weight stored [in, out]; a bias is a vector and never transposed."""
    offset: int = 0
    block: int = 0
    stride: int = 0
    bare: bool = False
    """The source's name has no `.weight`."""
    joined: str = "."
    """What stands between the source's name and the leaf."""
    interleaved: int = 0
    """Rows come in heads of this size with the rotary pairs (2i, 2i + 1) side by side."""
    rows_per_expert: int = 0
    """Expert e has this many rows of the source from e times as many on; cut out before all else."""


def view(source: str, **changes: object) -> View:
    """Short for tables."""
    return View(source=source, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's configuration and tensor names map to ours: a table, no code of its own."""

    name: str
    views: Callable[[ModelSpec], Mapping[str, View]]
    """Our parameter, without its leaf, to its place in the source."""
    model_types: Sequence[str] = ()
    """The `model_type`s of Hugging Face configurations that belong here."""
    spec: Callable[[Fields], ModelSpec] | None = None
    """Reads such a configuration; None where the source has a format of its own."""
    prefixes: Sequence[str] = ()
    """Source names may start with one of these, which the table leaves out."""
    heads: Sequence[str] = ("lm_head.weight",)
    """Where a head of its own lies, or a copy of a tied one."""
    ignored: str = r"(?!)"
    """Source tensors that hold nothing to convert: a pattern for the whole name."""
    harmless: frozenset[str] = field(default_factory=frozenset)
    """Configuration fields that do not change what the model computes."""
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = dict
    """Makes the configuration one that Transformers' class accepts; values it drops are read as written."""

    def without_prefix(self, name: str) -> str:
        """A source's name as the table has it."""
        for prefix in self.prefixes:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return name
