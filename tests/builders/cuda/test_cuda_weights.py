"""Weights read in chunks by threads are the weights that a plain reader finds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.cuda import weights
from builders.cuda.weights import read_to_device
from builders.tensor_file import write_tensors

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_bytes", [64, 1000, 1 << 20])
def test_same_as_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, chunk_bytes: int
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(weights, "_CHUNK_BYTES", chunk_bytes)
    tensors = {"a": torch.randn(3, 5), "odd": torch.randn(7), "b": torch.randn(33, 9), "none": torch.empty(0)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    file = tmp_path / "rank0.safetensors"
    write_tensors(file, shapes, torch.bfloat16, (tensor.bfloat16() for tensor in tensors.values()))
    found, expected = read_to_device(file, device), load_file(file)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.cpu(), expected[name]) and tensor.dtype == torch.bfloat16
        assert tensor.data_ptr() % 16 == 0 and tensor.device.type == device
