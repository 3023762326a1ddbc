"""The interpreter itself: every kind of layer on a tiny network made by hand, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from builders.ops import rotated
from builders.trt.logger import new_logger
from builders.trt.net import DTYPES
from tests.sim import ThreadGroup

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

from tests.trt_interpreter import ACTIVATIONS, BINARY, HANDLERS, UNARY, Interpreter  # noqa: E402

NONE, UPPER, LOWER = (getattr(trt.CausalMaskKind, name) for name in ("NONE", "UPPER_LEFT", "LOWER_RIGHT"))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


Made = Callable[[Any, Mapping[str, Any]], Any]
"""Adds layers to a network with inputs, and gives the tensor, or the tensors, that come out."""


class Net:
    """A network with an input for every tensor."""

    def __init__(self, inputs: Mapping[str, Tensor], make: Made) -> None:
        logger, self._log = new_logger(trt)
        self._builder = trt.Builder(logger)
        self.definition = self._builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        given = {
            name: self.definition.add_input(name, getattr(trt, DTYPES[x.dtype]), tuple(x.shape))
            for name, x in inputs.items()
        }
        made = make(self.definition, given)
        for index, tensor in enumerate(made if isinstance(made, tuple) else (made,)):
            assert tensor is not None, self._log.errors
            tensor.name = f"out{index}"
            self.definition.mark_output(tensor)

    def kinds(self) -> set[str]:
        return {self.definition.get_layer(index).type.name for index in range(self.definition.num_layers)}

    def run(self, inputs: Mapping[str, Tensor], comm: Any = None) -> list[Tensor]:
        outputs = Interpreter(self.definition, comm).run({name: x.clone() for name, x in inputs.items()})
        return [outputs[f"out{index}"] for index in range(len(outputs))]


def out(layer: Any, **attributes: Any) -> Any:
    """A layer's first output, once its attributes are set."""
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer.get_output(0)


HELD: list[Tensor] = []
"""TensorRT refers to constants by address."""


def constant(net: Any, value: Tensor) -> Any:
    HELD.append(value.contiguous())
    weights = trt.Weights(getattr(trt, DTYPES[value.dtype]), HELD[-1].data_ptr(), value.numel())
    return net.add_constant(tuple(value.shape), weights).get_output(0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny network, and what PyTorch makes of the same inputs."""

    inputs: Mapping[str, Tensor]
    make: Made
    expected: Callable[..., Tensor | Sequence[Tensor]]


X, Y = drawn(3, 4), drawn(3, 4, seed=1)


def elementwise(operation: str) -> Case:
    logical = operation == "AND"
    x, y = (X > 0, Y > 0) if logical else (X.abs(), Y.abs())
    if operation == "EQUAL":
        y = torch.where(Y > 0, x, y)
    return Case(
        inputs={"x": x, "y": y},
        make=lambda net, t: out(
            net.add_elementwise(t["x"], t["y"], getattr(trt.ElementWiseOperation, operation))
        ),
        expected=BINARY_TRUTH[operation],
    )


BINARY_TRUTH: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": lambda x, y: x + y,
    "PROD": lambda x, y: x * y,
    "SUB": lambda x, y: x - y,
    "DIV": lambda x, y: x / y,
    "POW": lambda x, y: x**y,
    "MAX": lambda x, y: torch.where(x > y, x, y),
    "MIN": lambda x, y: torch.where(x > y, y, x),
    "LESS": lambda x, y: x < y,
    "GREATER": lambda x, y: x > y,
    "EQUAL": lambda x, y: x == y,
    "AND": lambda x, y: x & y,
}
UNARY_TRUTH: Mapping[str, Callable[[Tensor], Tensor]] = {
    "SQRT": lambda x: x**0.5,
    "RECIP": lambda x: 1 / x,
    "COS": lambda x: x.cos(),
    "SIN": lambda x: x.sin(),
    "NOT": lambda x: ~x,
}
ACTIVATION_TRUTH: Mapping[str, Callable[[Tensor], Tensor]] = {
    "SIGMOID": lambda x: 1 / (1 + (-x).exp()),
    "RELU": lambda x: x.clamp(min=0),
    "GELU_ERF": lambda x: x * 0.5 * (1 + (x * 0.5**0.5).erf()),
    "GELU_TANH": lambda x: x * 0.5 * (1 + (0.7978845608 * (x + 0.044715 * x**3)).tanh()),
}


def unary(operation: str) -> Case:
    return Case(
        inputs={"x": X > 0 if operation == "NOT" else X.abs()},
        make=lambda net, t: out(net.add_unary(t["x"], getattr(trt.UnaryOperation, operation))),
        expected=UNARY_TRUTH[operation],
    )


def activation(kind: str) -> Case:
    return Case(
        inputs={"x": X},
        make=lambda net, t: out(net.add_activation(t["x"], getattr(trt.ActivationType, kind))),
        expected=ACTIVATION_TRUTH[kind],
    )


def reduce(operation: str, axis: int, keep: bool) -> Case:
    kind = getattr(trt.ReduceOperation, operation)
    truth = {"AVG": torch.mean, "SUM": torch.sum}[operation]
    return Case(
        inputs={"x": X},
        make=lambda net, t: out(net.add_reduce(t["x"], kind, 1 << axis, keep)),
        expected=lambda x: truth(x, axis, keepdim=keep),
    )


def matmul(x: Tensor, y: Tensor, *, transpose: bool) -> Case:
    plain, turned = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
    return Case(
        inputs={"x": x, "y": y},
        make=lambda net, t: out(
            net.add_matrix_multiply(t["x"], plain, t["y"], turned if transpose else plain)
        ),
        expected=lambda x, y: torch.matmul(x, y.mT if transpose else y),
    )


def shuffled(**attributes: Any) -> Made:
    return lambda net, t: out(net.add_shuffle(t["x"]), **attributes)


def shaped(net: Any, t: Mapping[str, Any]) -> Any:
    """A shuffle whose sizes are a tensor, as those of steps are."""
    sizes = constant(net, torch.tensor([2, 6]))
    layer = net.add_shuffle(t["x"])
    layer.set_input(1, sizes)
    return out(layer, second_transpose=(1, 0))


def sliced(net: Any, t: Mapping[str, Any]) -> Any:
    return out(net.add_slice(t["x"], (1,), (2,), (1,)), axes=(1,))


def normalized(net: Any, t: Mapping[str, Any]) -> Any:
    return out(net.add_normalization_v2(t["x"], t["scale"], t["bias"], 1 << 1), epsilon=0.01)


def best(net: Any, t: Mapping[str, Any]) -> Any:
    layer = net.add_topk(t["x"], trt.TopKOperation.MAX, 2, 1 << 1)
    return layer.get_output(0), layer.get_output(1)


def ramp(net: Any, t: Mapping[str, Any]) -> Any:
    sizes = out(net.add_shape(t["x"]))
    start = constant(net, torch.tensor(5, dtype=torch.int32))
    step = constant(net, torch.tensor([10, 1], dtype=torch.int32))
    layer = net.add_fill((1, 1), trt.FillOperation.LINSPACE, trt.int32)
    for index, tensor in enumerate((sizes, start, step)):
        layer.set_input(index, tensor)
    return layer.get_output(0)


def rotation(width: int) -> Case:
    """x [B, heads, S, D]; cos and sin [B, S, width / 2]"""
    angles = drawn(2, 5, width // 2)

    def expected(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows = (rotated(x.transpose(1, 2)[i], cos[i], sin[i]) for i in range(2))
        return torch.stack(list(rows)).transpose(1, 2)

    return Case(
        inputs={"x": drawn(2, 3, 5, 8), "cos": angles.cos(), "sin": angles.sin()},
        make=lambda net, t: out(net.add_rotary_embedding(t["x"], t["cos"], t["sin"], False, width)),
        expected=expected,
    )


def cache_update(starts: Sequence[int]) -> Case:
    def expected(cache: Tensor, new: Tensor, starts: Tensor) -> Tensor:
        cache = cache.clone()
        for row in range(2):
            for token in range(3):
                cache[row, :, starts[row] + token] = new[row, :, token]
        return cache

    inputs = {
        "cache": drawn(2, 2, 8, 4),
        "new": drawn(2, 2, 3, 4, seed=1),
        "starts": torch.tensor(starts, dtype=torch.int32),
    }
    linear = trt.KVCacheMode.LINEAR
    return Case(
        inputs=inputs,
        make=lambda net, t: out(net.add_kv_cache_update(t["cache"], t["new"], t["starts"], linear)),
        expected=expected,
    )


def dequantized(scale: Tensor, axis: int | None, wide: Callable[[Tensor], Tensor]) -> Case:
    narrow = torch.arange(-12, 12).view(4, 6).to(torch.int8)

    def make(net: Any, t: Mapping[str, Any]) -> Any:
        layer = net.add_dequantize(t["x"], constant(net, scale), trt.float32)
        return out(layer, **({} if axis is None else {"axis": axis}))

    return Case(inputs={"x": narrow}, make=make, expected=lambda x: x.float() * wide(scale))


def gathered(axis: int, *shape: int) -> Case:
    index = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape) % 3
    return Case(
        inputs={"x": X, "index": index},
        make=lambda net, t: out(net.add_gather(t["x"], t["index"], axis)),
        expected=lambda x, index: x[index.long()] if axis == 0 else x[:, index.long()],
    )


CASES: Mapping[str, Case] = {
    **{f"elementwise {name}": elementwise(name) for name in BINARY},
    **{f"unary {name}": unary(name) for name in UNARY},
    **{f"activation {name}": activation(name) for name in ACTIVATIONS},
    **{
        f"reduce {name} {axis} {keep}": reduce(name, axis, keep)
        for name in ("AVG", "SUM")
        for axis in (0, 1)
        for keep in (False, True)
    },
    "constant": Case(
        inputs={"x": X},
        make=lambda net, t: out(net.add_elementwise(t["x"], constant(net, Y), trt.ElementWiseOperation.SUM)),
        expected=lambda x: x + Y,
    ),
    "shape": Case(
        inputs={"x": X},
        make=lambda net, t: out(net.add_shape(t["x"])),
        expected=lambda x: torch.tensor([3, 4]),
    ),
    "concatenation": Case(
        inputs={"x": X, "y": Y},
        make=lambda net, t: out(net.add_concatenation([t["x"], t["y"]]), axis=1),
        expected=lambda x, y: torch.hstack([x, y]),
    ),
    "cast": Case(
        inputs={"x": X * 3},
        make=lambda net, t: out(net.add_cast(t["x"], trt.float16)),
        expected=lambda x: x.half(),
    ),
    "shuffle reshape": Case(
        inputs={"x": X}, make=shuffled(reshape_dims=(2, -1)), expected=lambda x: x.reshape(2, 6)
    ),
    "shuffle zero keeps": Case(
        inputs={"x": X}, make=shuffled(reshape_dims=(0, 2, 2)), expected=lambda x: x.reshape(3, 2, 2)
    ),
    "shuffle transposes": Case(
        inputs={"x": X},
        make=shuffled(first_transpose=(1, 0), reshape_dims=(2, 2, 3), second_transpose=(2, 0, 1)),
        expected=lambda x: x.t().reshape(2, 2, 3).permute(2, 0, 1),
    ),
    "shuffle by a tensor": Case(inputs={"x": X}, make=shaped, expected=lambda x: x.reshape(2, 6).t()),
    "slice": Case(inputs={"x": X}, make=sliced, expected=lambda x: x[:, 1:3]),
    "matmul": matmul(drawn(3, 4), drawn(4, 5), transpose=False),
    "matmul transposed": matmul(drawn(3, 4), drawn(5, 4), transpose=True),
    "matmul broadcast": matmul(drawn(1, 3, 4), drawn(2, 5, 4), transpose=True),
    "gather rows": gathered(0, 5),
    "gather columns": gathered(1, 2, 2),
    "select": Case(
        inputs={"where": X > 0, "x": X, "y": Y},
        make=lambda net, t: out(net.add_select(t["where"], t["x"], t["y"])),
        expected=lambda where, x, y: where * x + ~where * y,
    ),
    "normalization": Case(
        inputs={"x": X, "scale": drawn(1, 4, seed=2), "bias": drawn(1, 4, seed=3)},
        make=normalized,
        expected=lambda x, scale, bias: F.layer_norm(x, (4,), scale[0], bias[0], 0.01),
    ),
    "topk": Case(
        inputs={"x": X},
        make=best,
        expected=lambda x: (x.sort(1, True)[0][:, :2], x.sort(1, True)[1][:, :2].int()),
    ),
    "softmax": Case(
        inputs={"x": X},
        make=lambda net, t: out(net.add_softmax(t["x"]), axes=1 << 0),
        expected=lambda x: x.exp() / x.exp().sum(0),
    ),
    "fill": Case(
        inputs={"x": X},
        make=ramp,
        expected=lambda x: (
            5 + 10 * torch.arange(3, dtype=torch.int32)[:, None] + torch.arange(4, dtype=torch.int32)
        ),
    ),
    "rotation": rotation(8),
    "partial rotation": rotation(4),
    "cache update": cache_update([0, 4]),
    "cache update to the end": cache_update([5, 1]),
    "dequantize whole": dequantized(torch.tensor(0.5), None, lambda scale: scale),
    "dequantize rows": dequantized(torch.arange(1.0, 5), 0, lambda scale: scale[:, None]),
    "dequantize columns": dequantized(torch.arange(1.0, 7), 1, lambda scale: scale),
    "dequantize blocks": dequantized(
        drawn(4, 2).abs(), None, lambda scale: scale[:, :, None].expand(4, 2, 3).reshape(4, 6)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layer_is_what_pytorch_computes(name: str) -> None:
    case = CASES[name]
    expected = case.expected(*case.inputs.values())
    found = Net(case.inputs, case.make).run(case.inputs)
    torch.testing.assert_close(found, [expected] if isinstance(expected, Tensor) else list(expected))


Q, K, V = drawn(2, 4, 3, 8), drawn(2, 2, 6, 8, seed=1), drawn(2, 2, 6, 8, seed=2)
"""Two sequences of three new tokens among six places; two heads share keys and values."""
LENGTHS = torch.tensor([4, 6], dtype=torch.int32)


def attend(kind: Any, *, mask: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    inputs = {"q": Q, "k": K, "v": V}
    inputs |= {} if mask is None else {"mask": mask}
    inputs |= {} if lengths is None else {"lengths": lengths}

    def make(net: Any, t: Mapping[str, Any]) -> Any:
        softmax = trt.AttentionNormalizationOp.SOFTMAX
        layer = net.add_attention_v2(t["q"], t["k"], t["v"], softmax, kind)
        layer.decomposable = True
        if mask is not None:
            layer.mask = t["mask"]
        if lengths is not None:
            layer.key_value_lengths = t["lengths"]
        return layer.get_output(0)

    (found,) = Net(inputs, make).run(inputs)
    return found


def truth(visible: Tensor | None) -> Tensor:
    """TensorRT scales nothing."""
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=visible, scale=1.0, enable_gqa=True)


def places(*rows: Sequence[int]) -> Tensor:
    """How many places each of the tokens sees, for every sequence."""
    return torch.stack([torch.stack([torch.arange(6) < count for count in row]) for row in rows])[:, None]


@pytest.mark.parametrize(
    ("kind", "lengths", "visible"),
    [
        (NONE, None, None),
        (NONE, LENGTHS, places((4, 4, 4), (6, 6, 6))),
        (UPPER, None, places((1, 2, 3), (1, 2, 3))),
        (LOWER, None, places((4, 5, 6), (4, 5, 6))),
        (LOWER, LENGTHS, places((2, 3, 4), (4, 5, 6))),
    ],
    ids=["all", "lengths", "upper left", "lower right", "lower right with lengths"],
)
def test_attention(kind: Any, lengths: Tensor | None, visible: Tensor | None) -> None:
    torch.testing.assert_close(attend(kind, lengths=lengths), truth(visible))


@pytest.mark.parametrize("added", [False, True], ids=["what is seen", "what is added"])
def test_attention_with_a_mask(added: bool) -> None:
    mask: Tensor = drawn(2, 1, 3, 6) if added else places((1, 3, 4), (6, 2, 5))
    torch.testing.assert_close(attend(NONE, mask=mask), truth(mask))


def test_lengths_are_ignored_beside_a_mask() -> None:
    """As by TensorRT's kernels: a mask that shows what lies beyond a length shows it."""
    mask = places((6, 6, 6), (6, 6, 6))
    torch.testing.assert_close(attend(NONE, mask=mask, lengths=LENGTHS), truth(mask))
    assert not torch.allclose(attend(NONE, lengths=LENGTHS), truth(mask))


def collective(operation: str, combine: str) -> Made:
    kind, how = getattr(trt.CollectiveOperation, operation), getattr(trt.ReduceOperation, combine)

    def make(net: Any, t: Mapping[str, Any]) -> Any:
        everyone = torch.empty(0, dtype=torch.int64).numpy()
        layer = net.add_dist_collective(t["x"], kind, how, -1, everyone)
        layer.num_ranks, layer.name = 2, operation.lower()
        return layer.get_output(0)

    return make


@pytest.mark.parametrize(
    ("operation", "combine", "expected"),
    [("ALL_REDUCE", "SUM", X + Y), ("ALL_GATHER", "NONE", torch.cat([X, Y]))],
)
def test_collectives_join_ranks(operation: str, combine: str, expected: Tensor) -> None:
    group = ThreadGroup(2)
    net = Net({"x": X}, collective(operation, combine))
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(net.run, {"x": x}, group.member(rank)) for rank, x in enumerate((X, Y))]
        for job in jobs:
            torch.testing.assert_close(job.result(), [expected])


def test_every_kind_is_tested() -> None:
    kinds = set().union(*(Net(case.inputs, case.make).kinds() for case in CASES.values()))
    assert kinds | {"ATTENTION_INPUT", "ATTENTION_OUTPUT"} == set(HANDLERS)
    assert set(BINARY) == set(BINARY_TRUTH) and set(UNARY) == set(UNARY_TRUTH)
    assert set(ACTIVATIONS) == set(ACTIVATION_TRUTH)


def refused(inputs: Mapping[str, Tensor], make: Made, given: Mapping[str, Tensor] | None = None) -> None:
    Net(inputs, make).run(inputs if given is None else given)


def test_unknown_layer_is_an_error() -> None:
    with pytest.raises(KeyError, match="EINSUM"):
        refused({"x": X}, lambda net, t: out(net.add_einsum([t["x"]], "ij->ji")))


def test_strides_are_an_error() -> None:
    with pytest.raises(AssertionError, match="strides"):
        refused({"x": X}, lambda net, t: out(net.add_slice(t["x"], (0,), (2,), (2,)), axes=(1,)))


def test_values_of_another_type_or_shape_are_an_error() -> None:
    double: Made = lambda net, t: out(net.add_elementwise(t["x"], t["x"], trt.ElementWiseOperation.SUM))  # noqa: E731
    with pytest.raises(AssertionError, match=r"x: torch\.float16, not DataType\.FLOAT"):
        refused({"x": X}, double, {"x": X.half()})
    with pytest.raises(AssertionError, match=r"x: \(4, 3\), not \(3, 4\)"):
        refused({"x": X}, double, {"x": X.t()})


def test_writing_past_the_cache_is_an_error() -> None:
    case = cache_update([0, 6])
    with pytest.raises(AssertionError, match="past the end of the cache"):
        refused(case.inputs, case.make)
