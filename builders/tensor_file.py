"""Writing one safetensors file as a stream, hashed on the way: no tensor is held whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""What safetensors calls the dtypes that a checkpoint of ours may have."""

_PAGE_BYTES = 4096
"""The data starts on a page, so that a mapped tensor is aligned."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A finished file."""

    name: str
    num_bytes: int
    sha256: str


def write_tensors(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, chunks: Iterable[Tensor]
) -> Written:
    """Write tensors of these shapes from chunks that hold their elements in order.

    A second thread hashes each chunk while the next one is read and written.
    """
    header = _header(shapes, dtype)
    digest, num_bytes = hashlib.sha256(header), len(header)
    with file.open("xb") as out, ThreadPoolExecutor(1) as hasher:
        out.write(header)
        hashed = hasher.submit(digest.update, b"")
        for chunk in chunks:
            data = chunk.contiguous().view(-1).view(torch.uint8).numpy().data
            hashed.result()
            hashed = hasher.submit(digest.update, data)
            num_bytes += out.write(data)
        hashed.result()
    expected = len(header) + sum(map(math.prod, shapes.values())) * dtype.itemsize
    if num_bytes != expected:
        raise AssertionError(f"{file.name}: wrote {num_bytes} bytes, its header says {expected}")
    return Written(name=file.name, num_bytes=num_bytes, sha256=digest.hexdigest())


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> bytes:
    entries, start = {}, 0
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = -(-(len(text) + 8) // _PAGE_BYTES) * _PAGE_BYTES - 8
    return length.to_bytes(8, "little") + text.ljust(length)
