"""Which operators have kernels."""

from __future__ import annotations

from collections.abc import Mapping

from builders.cuda.attend import AttendKernel, RotateAndAttendKernel
from builders.cuda.launch import Kernel, LinearKernel
from builders.cuda.moe import MoeKernel
from builders.cuda.reduce import AllReduceKernel

ATTENDING: Mapping[str, AttendKernel] = {
    "fused.rotate_and_attend": RotateAndAttendKernel(),
    "fused.attend": AttendKernel(),
}
"""What has one kernel for prompts and others for tokens that are alone in their sequences."""

KERNELS: Mapping[str, Kernel] = {
    "fused.linear": LinearKernel(),
    **ATTENDING,
    "fused.all_reduce": AllReduceKernel(),
    "rankforge.moe": MoeKernel(),
}
