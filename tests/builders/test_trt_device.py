"""The device half, against a TensorRT of our own on the CPU: addresses, shapes, slots, ranks."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders.constants import rank_constants
from builders.errors import EngineError
from builders.mapping import Mapping, rank_shape
from builders.spec import ModelSpec
from builders.trt.device import DeviceExecutor
from builders.trt.runtime import TrtEngine
from builders.trt.weights import given
from tests.builders.test_trt_network import STEPS, spec_of
from tests.sim import Member
from tests.trt_device import Context, Library, without_cuda
from tests.trt_ranks import LIMITS, Lockstep, Runner, decoder, made_up, network
from tests.trt_steps import step_of

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cuda(monkeypatch)


def executor(
    spec: ModelSpec, mapping: Mapping, rank: int, member: Member, *, strip: bool
) -> tuple[DeviceExecutor, list[Context]]:
    lowered = network(spec, mapping, rank, trt, strip=strip)
    tensors = {**made_up(spec, mapping, rank, torch.float32), **rank_constants(spec, mapping, rank)}
    first = rank_shape(spec, mapping, rank).layers.start
    library = Library(trt, lowered, member)
    bound = given(lowered.weight_inputs, first, tensors)
    return DeviceExecutor(library, memoryview(b""), bound, device="cpu"), library.engine.contexts


@pytest.mark.parametrize(
    ("name", "mapping", "strip"),
    [
        ("llama-rope-dynamic", Mapping(), False),
        ("llama-tied", Mapping(), True),
        ("mpt", Mapping(pp_size=2), True),
        ("mixtral", Mapping(tp_size=2, pp_size=3, ep_size=2), True),
    ],
)
def test_device_half_is_the_decoder(name: str, mapping: Mapping, strip: bool) -> None:
    spec = replace(spec_of(name), head_dim=16)

    def engine(rank: int, member: Member) -> Runner:
        made, _contexts = executor(spec, mapping, rank, member, strip=strip)
        shape = rank_shape(spec, mapping, rank)
        return TrtEngine(made, LIMITS, first=shape.first, last=shape.last).forward

    truth = Lockstep.of(mapping, lambda rank, _member: decoder(spec, mapping, rank))
    found = Lockstep.of(mapping, engine)
    for parts, wanted in STEPS:
        step = step_of(parts, wanted)
        ids = torch.arange(len(step.positions)) * 7 % spec.vocab_size
        torch.testing.assert_close(found.forward(ids, step), truth.forward(ids, step), rtol=1e-4, atol=1e-4)


def test_addresses_are_bound_once_but_for_slots() -> None:
    made, contexts = executor(spec_of("gpt2"), Mapping(), 0, None, strip=True)  # type: ignore[arg-type]
    calls: list[str] = []
    for context in contexts:
        bind = context.set_tensor_address
        context.set_tensor_address = lambda name, address, bind=bind: (  # type: ignore[method-assign, misc]
            calls.append(name) or bind(name, address)  # type: ignore[func-returns-value]
        )

    def decode(slot: int) -> int:
        ids, ones = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, dtype=torch.int32)
        inputs = {"ids": ids, "positions": ids, "starts": 0 * ones, "lengths": ones, "wanted": 0 * ones}
        calls.clear()
        made.run(slot, inputs)
        return len(calls)

    caches = 3 * 2 * 2  # layers, keys and values, in and out
    assert [decode(slot) for slot in (0, 0, 2, 2, 0)] == [0, 0, caches, 0, caches]


def test_communicator_reaches_every_context() -> None:
    made, contexts = executor(spec_of("gpt2"), Mapping(), 0, None, strip=True)  # type: ignore[arg-type]
    made.set_communicator(SimpleNamespace(comm=1234))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    assert [pointer(context.communicator, None) for context in contexts] == [1234, 1234]


def test_what_tensorrt_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "execute_async_v3", lambda *_args: False)
    made, _contexts = executor(spec_of("gpt2"), Mapping(), 0, None, strip=True)  # type: ignore[arg-type]
    ids = torch.zeros(1, 1, dtype=torch.int32)
    with pytest.raises(EngineError, match="TensorRT cannot execute"):
        made.run(0, {"ids": ids, "positions": ids, "starts": ids[0], "lengths": ids[0] + 1, "wanted": ids[0]})
    broken: Any = Library(trt, network(spec_of("gpt2"), Mapping(), 0, trt, strip=True), None)  # type: ignore[arg-type]
    broken.engine = None
    with pytest.raises(EngineError, match="TensorRT cannot deserialize the plan"):
        DeviceExecutor(broken, memoryview(b""), {}, device="cpu")
