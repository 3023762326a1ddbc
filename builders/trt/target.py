"""What a plan can be built for, by which library, and what each target refuses."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from builders.errors import EngineError
from builders.limits import Limits
from builders.spec import ModelSpec

if TYPE_CHECKING:
    from builders.export import Graphs

LibraryName = Literal["tensorrt", "tensorrt_rtx"]

NO_BF16 = "Turing has no bfloat16; use --dtype float16"
NO_FP32 = "TensorRT-RTX multiplies no float32 matrices on Turing; use --dtype float16"
NO_FP8 = "FP8 begins with Ada (sm89); use sm89, sm120 or sm121, or another quantization"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of GPU, named as on the command line, and the library that builds for it."""

    name: str
    library: LibraryName
    capability: str | None = None
    """Of tensorrt_rtx.ComputeCapability; None where the library builds for the GPU at hand."""
    gpu: str | None = None
    """The GPU at hand, where the plan is for no other."""
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
    )
}
"""What TensorRT-RTX builds for, on any machine."""

EXTRAS: Mapping[LibraryName, str] = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}


def is_installed(library: LibraryName) -> bool:
    """Found, not imported."""
    return importlib.util.find_spec(library) is not None


def choose_target(name: str, library: LibraryName | Literal["auto"] = "auto") -> Target:
    """The target of `--target` and `--trt_library`; `current` is the GPU at hand."""
    if library == "auto" and not any(map(is_installed, EXTRAS)):
        raise EngineError(
            "--engine=tensorrt: neither tensorrt_rtx nor tensorrt is installed here; install "
            "rankforge[tensorrt-rtx] for RTX GPUs, or rankforge[tensorrt] for the data-centre GPU at hand"
        )
    if name == "current":
        return _current(library)
    if library == "tensorrt":
        raise EngineError(
            f"--target={name}: --trt_library tensorrt builds for the GPU at hand; use --target current"
        )
    if name not in TARGETS:
        raise EngineError(f"--target={name}: not a TensorRT target; use one of current, {', '.join(TARGETS)}")
    return TARGETS[name]


def _current(library: LibraryName | Literal["auto"]) -> Target:
    """RTX GPUs have a library of their own, which is taken unless the other is asked for."""
    name = local_gpu()
    if name is None:
        raise EngineError(f"--target=current: no GPU here; name what to build for: {', '.join(TARGETS)}")
    if name in TARGETS and library != "tensorrt":
        return TARGETS[name]
    if library == "tensorrt_rtx":
        raise EngineError(
            f"--target=current: this GPU is {name}, which TensorRT-RTX does not build for; "
            "use --trt_library tensorrt, or --engine torch"
        )
    return Target(name=name, library="tensorrt", gpu=torch.cuda.get_device_name())


def local_gpu() -> str | None:
    """The current GPU's kind, named as a target."""
    if not torch.cuda.is_available():
        return None
    return "sm{}{}".format(*torch.cuda.get_device_capability())


def load_library(library: LibraryName) -> Any:
    """TensorRT's Python module."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise EngineError(
            f"--trt_library={library}: not installed here; install rankforge[{EXTRAS[library]}]"
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
