"""Tensors as they lie in files: an index that can be sent to a worker, and a reader that maps them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from builders.errors import SourceError

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of safetensors that a checkpoint of ours may hold."""

_DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What PyTorch's restricted reader raises for files that are not what it wrote."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One tensor in one file."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


Index = Mapping[str, tuple[Stored, ...]]
"""Name to its parts: one, or as many as tensor parallel ranks wrote the checkpoint."""


def index_file(file: Path) -> dict[str, Stored]:
    """Every tensor of a file, from its header alone."""
    found = _index_safetensors(file) if file.suffix == ".safetensors" else _index_torch(file)
    for key in found:
        if not key.isprintable():
            raise SourceError(f"{file}: has a tensor named {key!r}; names must be printable")
    return found


def _index_safetensors(file: Path) -> dict[str, Stored]:
    found = {}
    with _open_safetensors(file) as tensors:
        for key in tensors.keys():  # noqa: SIM118 (not a dict)
            info = tensors.get_slice(key)
            dtype = DTYPES.get(info.get_dtype())
            if dtype is None:
                raise SourceError(
                    f"{file}: tensor {key!r} has dtype {info.get_dtype()}; known: {', '.join(DTYPES)}"
                )
            found[key] = Stored(file=file, key=key, shape=tuple(info.get_shape()), dtype=dtype)
    return found


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error


def _index_torch(file: Path) -> dict[str, Stored]:
    return {
        key: Stored(file=file, key=key, shape=tuple(value.shape), dtype=value.dtype)
        for key, value in _open_torch(file).items()
    }


def _open_torch(file: Path) -> dict[str, Tensor]:
    """The tensors of a .bin, .pth or .ckpt, mapped and not read; nothing in the file is executed."""
    try:
        if not zipfile.is_zipfile(file):
            raise SourceError(
                f"{file}: truncated, or not in the zip format that torch.save writes since 1.6; save it again"
            )
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except _DAMAGED as error:
        why = " ".join(str(error).split(". ")[0].split())
        raise SourceError(f"{file}: refused, it holds more than tensors or is damaged ({why})") from error
    return _only_tensors(file, content)


def _only_tensors(file: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise SourceError(f"{file}: holds a {type(content).__name__}; expected a dict of tensors")
    tensors = _tensors_of(content)
    for key, value in _nested(file, content).items():
        if key in tensors:
            raise SourceError(f"{file}: tensor {key!r} is in it twice, also in a dict inside; save it again")
        tensors[key] = value
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.device.type != "cpu":
            raise SourceError(f"{file}: tensor {key!r} is sparse or has no data; save it as a plain tensor")
    return tensors


def _tensors_of(content: Mapping[Any, object]) -> dict[str, Tensor]:
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _nested(file: Path, content: Mapping[Any, object]) -> dict[str, Tensor]:
    """The tensors of a dict inside: `state_dict`, or the only one that holds weights."""
    inside = {str(key): _tensors_of(value) for key, value in content.items() if isinstance(value, dict)}
    if "state_dict" in inside:
        return inside["state_dict"]
    found = [key for key, tensors in inside.items() if any(map(torch.is_floating_point, tensors.values()))]
    if len(found) > 1:
        raise SourceError(f"{file}: holds weights as each of {', '.join(map(repr, found))}; save one of them")
    return inside[found[0]] if found else {}


class Reader:
    """Maps tensors of an index. Pages that were read are given back once they add up."""

    def __init__(self, budget_bytes: int = 64 * 2**20) -> None:
        self._budget_bytes, self._seen_bytes = budget_bytes, 0
        self._open: dict[Path, Any] = {}

    def tensor(self, stored: Stored) -> Tensor:
        """The whole tensor, not yet in memory: slice it before use."""
        if self._seen_bytes > self._budget_bytes:
            self._open, self._seen_bytes = {}, 0
        if stored.file not in self._open:
            safe = stored.file.suffix == ".safetensors"
            self._open[stored.file] = (_open_safetensors if safe else _open_torch)(stored.file)
        opened = self._open[stored.file]
        self._seen_bytes += stored.dtype.itemsize * max(1, _product(stored.shape))
        try:
            tensor = opened[stored.key] if isinstance(opened, dict) else opened.get_tensor(stored.key)
        except (SafetensorError, KeyError) as error:
            raise SourceError(f"{stored.file}: tensor {stored.key} is gone ({error})") from error
        return tensor  # type: ignore[no-any-return]


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
