"""What a device will have computed, on its way to the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.messages import StepResult


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A step under way."""

    done: torch.cuda.Event | None
    """None where all is done."""
    result: Callable[[], StepResult] | None
    """To be called when it is done; None where somebody else answers."""


def to_host(x: Tensor) -> Tensor:
    """A copy that the host can read, once the device has come to this."""
    if x.device.type == "cpu":
        return x.clone()
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """What is enqueued so far."""
    if device.type == "cpu":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
