"""Blocks of a cache are copied one after another, whoever reads and writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from builders.engine import TorchEngine
from builders.engine_folder import load_engine
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from tests.builders.test_engine import build
from tests.convert_tools import convert_opened
from tests.tiny import save_llama

COPIES = [
    [],
    [(0, 4)],
    [(0, 4), (1, 5), (0, 6)],
    [(0, 1), (1, 2)],
    [(1, 2), (0, 1)],
    [(0, 1), (1, 0), (0, 3)],
    [(0, 3), (1, 3)],
]


@pytest.mark.parametrize("copies", COPIES, ids=str)
def test_one_after_another(copies: list[tuple[int, int]], tmp_path: Path) -> None:
    opened = open_folder(save_llama(tmp_path / "model"))
    engine = load_engine(
        build(convert_opened(opened, Mapping(), tmp_path / "out"), compiled=False), 0, num_blocks=7
    )
    assert isinstance(engine, TorchEngine)
    tensors = [value for cache in engine._caches for value in (cache.k, cache.v)]
    for tensor in tensors:
        tensor.copy_(torch.randn_like(tensor))
    expected = [tensor.clone() for tensor in tensors]
    for source, target in copies:
        for tensor in expected:
            tensor[target] = tensor[source]
    engine.copy_blocks(copies)
    assert all(map(torch.equal, tensors, expected))
