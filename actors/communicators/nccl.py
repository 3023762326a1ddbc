"""The communicator of GPUs: NCCL on PyTorch's current stream, also while a CUDA graph is captured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from actors.communicators.rendezvous import Rendezvous
from builders.errors import PeerError

_SUM = 0
_DTYPES = {
    torch.int8: 0,
    torch.uint8: 1,
    torch.int32: 2,
    torch.int64: 4,
    torch.float16: 6,
    torch.float32: 7,
    torch.float64: 8,
    torch.bfloat16: 9,
}
"""ncclDataType_t."""

_POLLS_PER_CHECK = 1024
"""How many looks at the device there are between two at NCCL's own errors."""


class Nccl:
    """See `actors.communicators.peers.Peers`. The device is PyTorch's current one and stays it."""

    buffers = None

    def __init__(self, place: Rendezvous) -> None:
        from cupy.cuda import nccl  # only where there are GPUs

        place.arrive()
        self.rank, self.size, self._place = place.index, place.size, place
        self._device, self._error = torch.cuda.current_device(), nccl.NcclError
        self._aborted, self._closed, self._closing = False, False, threading.Lock()
        unique = _shared_id(place, nccl.get_unique_id)
        self._comm = self._joined(lambda: nccl.NcclCommunicator(place.size, unique, place.index))
        # NCCL connects on first use, which no graph can hold.
        self.all_reduce(torch.zeros(1, device="cuda"))
        self.finish()

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        self._comm.allReduce(x.data_ptr(), out.data_ptr(), x.numel(), _DTYPES[x.dtype], _SUM, _stream())
        return out

    def all_gather(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = x.new_empty(self.size, *x.shape)
        self._comm.allGather(x.data_ptr(), parts.data_ptr(), x.numel(), _DTYPES[x.dtype], _stream())
        return parts.movedim(0, -2).flatten(-2)

    def broadcast(self, x: Tensor, root: int) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        args = (x.numel(), _DTYPES[x.dtype], root, _stream())
        self._comm.broadcast(x.data_ptr(), out.data_ptr(), *args)
        return out

    def send(self, x: Tensor, to: int) -> None:
        x = x.contiguous()
        self._comm.send(x.data_ptr(), x.numel(), _DTYPES[x.dtype], to, _stream())

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        out = torch.empty(*shape, dtype=dtype, device=f"cuda:{self._device}")
        self._comm.recv(out.data_ptr(), out.numel(), _DTYPES[dtype], source, _stream())
        return out

    def finish(self, done: torch.cuda.Event | None = None) -> None:
        """Looks again and again, letting other threads run: a wait inside the driver would have no end."""
        if done is None:
            done = torch.cuda.Event()
            done.record()
        deadline = time.monotonic() + self._place.timeout_s
        for look in count(1):
            if self._aborted:
                raise PeerError(f"rank {self._place.rank}: waiting for the device: the group was given up")
            if done.query():
                return
            if look % _POLLS_PER_CHECK == 0:
                self._check(deadline)
            time.sleep(0)

    def close(self) -> None:
        """Kernels that still wait for peers end. In the background: NCCL itself may wait for its network."""
        with self._closing:
            if not self._closed:
                self._closed = True
                threading.Thread(target=self._comm.abort, daemon=True).start()

    def abort(self) -> None:
        self._aborted = True
        self.close()

    def _check(self, deadline: float) -> None:
        try:
            self._comm.check_async_error()
        except self._error as error:
            self.close()
            self._place.fail("waiting for the device", str(error))
        if time.monotonic() > deadline:
            self.close()
            self._place.fail("waiting for the device", f"not done after {self._place.timeout_s:g} s")

    def _joined(self, join: Callable[[], Any]) -> Any:
        """NCCL's own start has no bound; a thread that never ends is left behind with this process."""
        made: list[Any] = []
        failed: list[str] = []

        def run() -> None:
            torch.cuda.set_device(self._device)
            try:
                made.append(join())
            except self._error as error:
                failed.append(str(error))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self._place.timeout_s)
        if not made:
            self._place.fail("starting NCCL", failed[0] if failed else "it does not return")
        return made[0]


def _stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def _shared_id(place: Rendezvous, new_id: Callable[[], bytes]) -> bytes:
    """The first member's, through the store."""
    if place.index == 0:
        place.scope.set("nccl", new_id().hex())
    return bytes.fromhex(place.scope.get("nccl").decode())
