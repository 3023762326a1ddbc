"""What a plan can be built for, by which library, and what each target refuses."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from builders.errors import EngineError
from builders.export import Graphs
from builders.limits import Limits
from builders.spec import ModelSpec

NO_BF16 = "Turing has no bfloat16; use --dtype float16"
NO_FP32 = "TensorRT-RTX multiplies no float32 matrices on Turing; use --dtype float16"
NO_FP8 = "FP8 begins with Ada (sm89); use sm89, sm120 or sm121, or another quantization"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of GPU, named as on the command line."""

    name: str
    library: Literal["tensorrt_rtx", "tensorrt"]
    capability: str | None = None
    """Of tensorrt_rtx.ComputeCapability; None where the library builds for the GPU at hand."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Dtypes of weights that it cannot multiply, each with the reason."""

    @property
    def is_timed(self) -> bool:
        """Whether the builder times kernels; TensorRT-RTX chooses them at run time."""
        return self.library == "tensorrt"


def _rtx(name: str, **refused: str) -> Target:
    return Target(name=name, library="tensorrt_rtx", capability=name.upper(), refused=refused)


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        _rtx("sm75", float32=NO_FP32, bfloat16=NO_BF16, float8_e4m3fn=NO_FP8),
        _rtx("sm80", float8_e4m3fn=NO_FP8),
        _rtx("sm86", float8_e4m3fn=NO_FP8),
        _rtx("sm89"),
        _rtx("sm120"),
        _rtx("sm121"),
        Target(name="tensorrt", library="tensorrt"),
    )
}


def target_named(name: str) -> Target:
    """The target of a `--target`; `current` is the one that the local GPU is."""
    name = _current() if name == "current" else name
    if name not in TARGETS:
        raise EngineError(f"--target={name}: not a TensorRT target; use one of current, {', '.join(TARGETS)}")
    return TARGETS[name]


def _current() -> str:
    if not torch.cuda.is_available():
        raise EngineError(f"--target=current: no GPU here; name what to build for: {', '.join(TARGETS)}")
    name = "sm{}{}".format(*torch.cuda.get_device_capability())
    if name not in TARGETS:
        raise EngineError(
            f"--target=current: this GPU is {name}, which TensorRT-RTX does not build for; "
            "use --target tensorrt, or --engine torch"
        )
    return name


EXTRAS = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


def load_library(target: Target) -> Any:
    """TensorRT's Python module for a target."""
    try:
        return importlib.import_module(target.library)
    except ImportError as error:
        raise EngineError(
            f"--target={target.name}: needs {target.library}, which is not installed here; "
            f"install rankforge[{EXTRAS[target.library]}]"
        ) from error


def check_target(target: Target, spec: ModelSpec, graphs: Graphs, limits: Limits) -> None:
    """Refuse before the build what TensorRT would refuse after minutes, or at run time."""
    for dtype in sorted(_dtypes(graphs)):
        if dtype in target.refused:
            raise EngineError(f"--target={target.name}: the model is {dtype}; {target.refused[dtype]}")
    if spec.head_dim % 8:
        raise EngineError(
            f"head_dim={spec.head_dim}: TensorRT's attention needs a multiple of 8; use --engine torch"
        )
    if limits.max_seq_len % 16:
        # Slots lie one after another, and addresses are multiples of 256 bytes.
        raise EngineError(
            f"--max_seq_len={limits.max_seq_len}: a slot of the cache must begin at an address that TensorRT "
            "takes; use a multiple of 16"
        )


def _dtypes(graphs: Graphs) -> Iterable[str]:
    """Of the weights: they are what is multiplied."""
    pieces = (piece for piece in (graphs.embed, *graphs.blocks, graphs.head) if piece is not None)
    return {piece.types[value].dtype for piece in pieces for value in piece.weights}
