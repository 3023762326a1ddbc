"""What kernels can be built for, and what of it is at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from builders.errors import EngineError

CAPABILITIES = {"sm80": 80, "sm86": 86, "sm89": 89, "sm90": 90, "sm100": 100, "sm120": 120}
"""Devices that kernels are compiled for, on any machine."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of device."""

    capability: int
    """90 for compute capability 9.0."""
    device: str | None
    """The name of the device that candidates are timed on; None: the likeliest is taken."""

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"sm{self.capability}"


def choose_target(name: str) -> Target:
    """`cuda` is the device at hand; a named one is timed on where it is the one at hand."""
    at_hand = local_target()
    if name == "cuda":
        if at_hand is None:
            raise EngineError(
                "--target=cuda: no CUDA device here to time kernels on; run where there is one, or name a "
                f"target to take the likeliest kernels untimed: {', '.join(CAPABILITIES)}"
            )
        if at_hand.name not in CAPABILITIES:
            raise EngineError(
                f"--target=cuda: {at_hand.device} has compute capability {at_hand.name}; "
                f"kernels are compiled for {', '.join(CAPABILITIES)}"
            )
        return at_hand
    if at_hand is not None and at_hand.name == name:
        return at_hand
    return Target(capability=CAPABILITIES[name], device=None)


def local_target() -> Target | None:
    """The device at hand, if there is one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return Target(capability=10 * major + minor, device=torch.cuda.get_device_name())


def obstacle(target: str) -> str | None:
    """Why kernels built for a target do not run here."""
    here = local_target()
    if here is None:
        return f"it was built for {target}, and there is no CUDA device here"
    return None if here.name == target else f"it was built for {target}, and {here.device} is {here.name}"
