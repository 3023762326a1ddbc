"""A rank's weights on their device: the file is read in chunks by several threads, and copied as it comes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builders.tensor_file import NAMES

_CHUNK_BYTES = 32 * 2**20
_THREADS = 4
_ALIGNMENT = 16
"""Of every address that a kernel is given."""

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


def read_to_device(file: Path, device: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file of ours, in one allocation."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(length))
    start, size = 8 + length, file.stat().st_size - 8 - length
    data = torch.empty(size, dtype=torch.uint8, device=device)
    chunks = [range(at, min(at + _CHUNK_BYTES, size)) for at in range(0, size, _CHUNK_BYTES)]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda mine: _copy(file, start, mine, data), _dealt(chunks)))
    if data.is_cuda:
        torch.cuda.synchronize(data.device)
    return {name: _tensor(data, entry) for name, entry in entries.items() if name != "__metadata__"}


def _dealt(chunks: list[range]) -> Iterator[list[range]]:
    """To every thread, chunks from all over the file: they advance through it together."""
    return (chunks[first::_THREADS] for first in range(_THREADS))


def _copy(file: Path, start: int, chunks: list[range], data: Tensor) -> None:
    """One thread's chunks, by two buffers in turn: one is filled while the other is copied."""
    if not chunks:
        return
    buffers = [_Buffer(len(chunks[0]), data) for _ in range(2)]
    with file.open("rb", buffering=0) as opened:
        for number, chunk in enumerate(chunks):
            opened.seek(start + chunk.start)
            buffers[number % 2].pass_on(opened, chunk)
    for buffer in buffers:
        buffer.wait()


class _Buffer:
    """Memory that a device copies from by itself, where there is one."""

    def __init__(self, size: int, data: Tensor) -> None:
        self._data = data
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=data.is_cuda)
        self._stream = torch.cuda.Stream(data.device) if data.is_cuda else None

    def pass_on(self, opened: FileIO, chunk: range) -> None:
        """A chunk of the file to its place."""
        self.wait()
        part = self._host[: len(chunk)]
        view = part.numpy().data
        while view:
            if not (count := opened.readinto(view)):
                raise EOFError(f"{opened.name}: ended before byte {chunk.stop} of its tensors")
            view = view[count:]
        with torch.cuda.stream(self._stream):
            self._data[chunk.start : chunk.stop].copy_(part, non_blocking=True)

    def wait(self) -> None:
        """Until the last copy is done."""
        if self._stream is not None:
            self._stream.synchronize()


def _tensor(data: Tensor, entry: Mapping[str, Any]) -> Tensor:
    """A view, unless no kernel may be given its address."""
    start, stop = entry["data_offsets"]
    shape, dtype = entry["shape"], _DTYPES[entry["dtype"]]
    assert math.prod(shape) * dtype.itemsize == stop - start, "the header's offsets are ours"
    raw = data[start:stop]
    if start % dtype.itemsize or raw.data_ptr() % _ALIGNMENT:
        raw = raw.clone()
    return raw.view(dtype).view(shape)
