"""A folder in Hugging Face's layout: config.json, weights in one or many files, a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from builders.errors import ConfigError, SourceError
from builders.families import from_transformers, tensorrt_llm
from builders.sources.opened import Opened
from builders.sources.stored import Index, Stored, index_file

TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
)
"""What a tokenizer may consist of."""

_DTYPE_NAMES = ("float32", "float16", "bfloat16")

_WEIGHTS = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
"""In order of preference: the index of many files, or the one file."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or one clear line."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise SourceError(f"{file}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{file}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise SourceError(f"{file}: expected a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; safetensors where there are any."""
    for index, single in _WEIGHTS:
        if (folder / index).is_file():
            return _listed(folder, folder / index)
        if (folder / single).is_file():
            return [folder / single]
    wanted = " or ".join(name for pair in _WEIGHTS for name in pair)
    raise SourceError(f"{folder}: no weights; expected {wanted}, or use --load_format random")


def _listed(folder: Path, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index}: has no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name:
            raise SourceError(f"{index}: names the file {name!r}, which is outside its folder")
        if not (folder / name).is_file():
            raise SourceError(f"{index}: names {name!r}, which is missing; fetch it again")
    return [folder / name for name in names]


def index_folder(folder: Path) -> Index:
    """Every tensor of the checkpoint."""
    found: dict[str, tuple[Stored, ...]] = {}
    for file in weight_files(folder):
        for key, stored in index_file(file).items():
            if key in found:
                raise SourceError(f"{file}: tensor {key} is also in {found[key][0].file.name}")
            found[key] = (stored,)
    return found


def companions(folder: Path) -> tuple[list[Path], Path | None]:
    """The tokenizer's files and the generation configuration that travel with the weights."""
    tokenizer = sorted({file for pattern in TOKENIZER_PATTERNS for file in folder.glob(pattern)})
    generation = folder / "generation_config.json"
    return [file for file in tokenizer if file.is_file()], generation if generation.is_file() else None


def open_folder(folder: Path, *, ignored: Collection[str] = (), config_only: bool = False) -> Opened:
    """Understand a folder; with `config_only` its weights are not looked at."""
    values = read_json(folder / "config.json")
    family, spec = from_transformers(values, ignored)
    tokenizer, generation = companions(folder)
    return Opened(
        family=family,
        spec=spec,
        dtype=_dtype(values),
        index={} if config_only else index_folder(folder),
        weights=[] if config_only else weight_files(folder),
        tokenizer=tokenizer,
        generation=generation,
    )


def open_config(file: Path, *, ignored: Collection[str] = ()) -> Opened:
    """Understand a configuration alone, Hugging Face's or the older TensorRT-LLM checkpoint's."""
    values = read_json(file)
    if "architecture" in values:
        spec, dtype, layout = tensorrt_llm.read_config(values, frozenset(ignored))
        return Opened(family=tensorrt_llm.FAMILY, spec=spec, dtype=dtype, layout=layout, index={})
    family, spec = from_transformers(values, ignored)
    return Opened(family=family, spec=spec, dtype=_dtype(values), index={})


def _dtype(values: dict[str, Any]) -> str | None:
    name = values.get("dtype") or values.get("torch_dtype")
    if name is not None and name not in _DTYPE_NAMES:
        raise ConfigError(f"config field dtype={name!r}: known: {', '.join(_DTYPE_NAMES)}")
    return name
