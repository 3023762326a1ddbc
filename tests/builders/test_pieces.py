"""Any slice of any parameter is what plain indexing of the whole gives, wherever and however it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from safetensors.torch import save_file
from torch import Tensor

from builders.families.view import View
from builders.params import Kind, Param, params
from builders.sources.pieces import FilePieces, Located, RandomPieces
from builders.sources.stored import Reader, index_file
from builders.spec import ModelSpec, RopeSpec
from tests.strategies import specs

quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A parameter, and the tensors of a source that hold it."""

    param: Param
    whole: Tensor
    view: View
    parts: list[Tensor]


def laid(kind: Kind, whole: Tensor, view: View, parts: list[Tensor], expert: int | None = None) -> Laid:
    param = Param(name="p.weight", shape=tuple(whole.shape), kind=kind, expert=expert)
    return Laid(param=param, whole=whole, view=view, parts=parts)


def numbered(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


sizes = st.integers(1, 6)


@st.composite
def fused(draw: DrawFn) -> Laid:
    """Some rows of a larger matrix, as in q, k, v one after another; perhaps stored [in, out]."""
    rows, cols, before, after = (draw(sizes) for _ in range(4))
    whole, transposed = numbered(rows, cols), draw(st.booleans())
    source = torch.cat([-numbered(before, cols), whole, -numbered(after, cols)])
    view = View(source="p", transposed=transposed, offset=before)
    return laid("q", whole, view, [source.t().contiguous() if transposed else source])


@st.composite
def head_by_head(draw: DrawFn) -> Laid:
    """Blocks of rows at a stride, as in query, key, value of each head; perhaps cut into parts."""
    block, blocks, others, cols = draw(sizes), draw(sizes), draw(st.integers(0, 4)), draw(sizes)
    first = draw(st.integers(0, others))
    whole = numbered(block * blocks, cols)
    source = torch.cat(
        [
            piece
            for rows in whole.split(block)
            for piece in (-numbered(first, cols), rows, -numbered(others - first, cols))
        ]
    )
    view = View(source="p", offset=first, block=block, stride=block + others)
    return laid("q", whole, view, in_parts(draw, source, dim=0))


@st.composite
def in_pairs(draw: DrawFn) -> Laid:
    """Heads whose rotary pairs lie side by side, as Meta stores them; perhaps cut into parts."""
    half, heads, cols = draw(sizes), draw(sizes), draw(sizes)
    whole = numbered(2 * half * heads, cols)
    source = whole.view(heads, 2, half, cols).transpose(1, 2).reshape(whole.shape)
    return laid("q", whole, View(source="p", interleaved=2 * half), in_parts(draw, source, dim=0))


@st.composite
def one_of_many_experts(draw: DrawFn) -> Laid:
    """All experts' rows in one tensor, of two dimensions or three; the last matrix transposed."""
    experts, width, cols = draw(sizes), draw(sizes), draw(sizes)
    expert, transposed = draw(st.integers(0, experts - 1)), draw(st.booleans())
    source = numbered(experts * width, cols)
    whole = source[expert * width : (expert + 1) * width]
    view = View(source="p", bare=True, rows_per_expert=width, transposed=transposed)
    stored = source.view(experts, width, cols) if draw(st.booleans()) else source
    return laid("row", whole.t() if transposed else whole, view, [stored], expert)


@st.composite
def by_columns(draw: DrawFn) -> Laid:
    """A matrix that tensor parallel ranks wrote by columns."""
    whole = numbered(draw(sizes), 2 * draw(sizes))
    return laid("row", whole, View(source="p"), in_parts(draw, whole, dim=1))


@st.composite
def vector(draw: DrawFn) -> Laid:
    """A bias or a norm: parts of it, or as many copies."""
    whole, kind = numbered(draw(sizes) * 6), draw(st.sampled_from(["column", "replicated", "row_bias"]))
    parts = in_parts(draw, whole, dim=0)
    return laid(kind, whole, View(source="p"), parts if kind == "column" else [whole] * len(parts))


def in_parts(draw: DrawFn, source: Tensor, dim: int) -> list[Tensor]:
    """Cut evenly, into as many parts as there may be."""
    counts = [count for count in range(1, 7) if source.shape[dim] % count == 0]
    return list(source.chunk(draw(st.sampled_from(counts)), dim=dim))


def located(case: Laid, folder: Path) -> Located:
    stored = []
    for index, part in enumerate(case.parts):
        file = folder / f"part{index}.safetensors"
        save_file({"p": part.clone().contiguous()}, file)
        stored.append(index_file(file)["p"])
    return Located(param=case.param, view=case.view, parts=tuple(stored))


LAYINGS = st.one_of(fused(), head_by_head(), in_pairs(), one_of_many_experts(), by_columns(), vector())


def spans(draw: DrawFn, size: int) -> tuple[int, int]:
    start = draw(st.integers(0, size - 1))
    return start, draw(st.integers(start + 1, size))


@quick
@given(case=LAYINGS, data=st.data(), budget=st.sampled_from([0, 99]))
def test_slices_are_those_of_the_whole(case: Laid, data: st.DataObject, budget: int, tmp_path: Path) -> None:
    pieces = FilePieces({"p": located(case, tmp_path)}, Reader(budget_bytes=budget))
    for _ in range(3):
        rows, *cols = (spans(data.draw, size) for size in case.param.shape)
        expected = case.whole[slice(*rows)]
        expected = expected[:, slice(*cols[0])] if cols else expected
        assert torch.equal(pieces.read("p", rows, cols[0] if cols else None), expected)


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
def test_reading_maps_and_does_not_load(
    save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    file = tmp_path / ("w.safetensors" if save is save_file else "w.bin")
    save({"w": numbered(64, 8)}, file)
    reader, stored = Reader(), index_file(file)["w"]
    with file.open("r+b") as raw:
        at = file.read_bytes().index(numbered(64, 8).numpy().tobytes())
        tensor = reader.tensor(stored)
        raw.seek(at)
        raw.write(torch.tensor(-1.0).numpy().tobytes())
        raw.flush()
    assert tensor[0, 0] == -1


@settings(deadline=None, max_examples=40)
@given(specs(), st.integers(0, 2**40))
def test_random_parameters_are_the_same_in_any_slices(spec: ModelSpec, seed: int) -> None:
    pieces = RandomPieces(spec, seed)
    for param in params(spec):
        cols = (0, param.shape[1]) if len(param.shape) > 1 else None
        whole = pieces.read(param.name, (0, param.shape[0]), cols)
        middle = (param.shape[0] // 3, param.shape[0])
        narrow = (cols[1] // 2, cols[1]) if cols else None
        part = whole[slice(*middle)]
        assert whole.shape == param.shape
        assert torch.equal(
            pieces.read(param.name, middle, narrow), part[:, slice(*narrow)] if narrow else part
        )


def test_random_parameters_look_like_a_model() -> None:
    """Norms pass their input on, biases are zero, matrices are small and all different."""
    spec = ModelSpec(
        family="llama",
        vocab_size=600,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=64,
        max_positions=8,
        norm="rmsnorm",
        norm_eps=1e-5,
        position="rope",
        rope=RopeSpec(rotary_dim=8),
        activation="silu",
        qkv_bias=True,
        attention_scale=1.0,
    )
    for norm, value in (("rmsnorm", 1.0), ("layernorm1p", 0.0)):
        assert RandomPieces(replace(spec, norm=norm), 0).read("norm.weight", (0, 32), None).eq(value).all()
    pieces = RandomPieces(spec, 0)
    assert not pieces.read("layers.0.attn.q.bias", (0, 32), None).any()
    q, k = (pieces.read(f"layers.0.attn.{name}.weight", (0, 16), (0, 32)) for name in "qk")
    assert 0.015 < q.std() < 0.025 and abs(q.mean()) < 0.005 and not torch.equal(q, k)
    embed = pieces.read("embed.weight", (0, 600), (0, 32))
    assert len(embed.unique()) == embed.numel() or len(embed.unique(dim=0)) == 600
    assert not torch.equal(embed, RandomPieces(spec, 1).read("embed.weight", (0, 600), (0, 32)))
