"""What every communicator can do beside the collectives that graphs hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from builders.kernels.reduce import PeerBuffers
from builders.ops import Communicator


class Peers(Communicator, Protocol):
    """One rank's end of a group. Every wait is bounded; what ends without its peers is a `PeerError`.

    Members are numbered 0, 1, ... inside the group, whatever ranks of the model they are. Results are new
    tensors. On a GPU everything is enqueued on PyTorch's current stream, and only `finish` waits.
    """

    @property
    def buffers(self) -> PeerBuffers | None:
        """Where kernels of all members meet without this; None where devices do not reach each other so."""

    def broadcast(self, x: Tensor, root: int) -> Tensor:
        """The root's tensor; the others give one of its shape and dtype."""

    def send(self, x: Tensor, to: int) -> None:
        """Hand a tensor to a member that receives it; it may be overwritten once the stream is past this."""

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        """What that member sends next."""

    def finish(self, done: torch.cuda.Event | None = None) -> None:
        """Wait until the device has come to this, or has done all that was enqueued."""

    def close(self) -> None:
        """Leave, whether or not the others do; nothing can be exchanged afterwards."""

    def abort(self) -> None:
        """From another thread: what waits for the device ends, with a `PeerError`, and so does this end of
        the group. Where sockets are waited on, that ends with the peers' processes."""
