"""The file that a rank writes: safetensors reads it, its hash is right, and it is whole or an error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from builders.tensor_file import NAMES, write_tensors

PAGE_BYTES = 4096
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def stored(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)


def data_start(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


@quick
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    dtype=st.sampled_from(sorted(NAMES, key=str)),
    cuts=st.lists(st.integers(0, 200), max_size=5),
)
def test_safetensors_reads_back_what_was_written_in_any_chunks(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, cuts: list[int], tmp_path: Path
) -> None:
    file = tmp_path / "rank0.safetensors"
    file.unlink(missing_ok=True)
    tensors = {f"t{i}": torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    chunks = flat.tensor_split(sorted(min(cut, len(flat)) for cut in cuts))

    written = write_tensors(file, {name: tensor.shape for name, tensor in tensors.items()}, dtype, chunks)

    assert all(torch.equal(tensor, tensors[name]) for name, tensor in stored(file).items())
    assert stored(file).keys() == tensors.keys()
    content = file.read_bytes()
    assert (written.num_bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("num_tensors", [1, 40, 400], ids="{} tensors".format)
def test_data_starts_on_a_page(num_tensors: int, tmp_path: Path) -> None:
    file, names = tmp_path / "rank0.safetensors", [f"layers.{i}.weight" for i in range(num_tensors)]
    write_tensors(file, dict.fromkeys(names, (1,)), torch.float32, [torch.arange(float(num_tensors))])
    assert data_start(file) % PAGE_BYTES == 0
    assert [int(stored(file)[name]) for name in names] == list(range(num_tensors))


def test_chunks_may_be_any_view(tmp_path: Path) -> None:
    file, matrix = tmp_path / "rank0.safetensors", torch.arange(12.0).view(3, 4)
    write_tensors(file, {"t": (4, 3)}, torch.float32, [matrix.t()[:2], matrix.t()[2:]])
    assert torch.equal(stored(file)["t"], matrix.t())


def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "rank0.safetensors"
    file.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_tensors(file, {"t": (1,)}, torch.float32, [torch.zeros(1)])
    assert file.read_bytes() == b"precious"


@pytest.mark.parametrize("num_elements", [0, 5, 7])
def test_chunks_that_do_not_add_up_are_an_error(num_elements: int, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="its header says"):
        write_tensors(tmp_path / "r.safetensors", {"t": (6,)}, torch.float32, [torch.zeros(num_elements)])
