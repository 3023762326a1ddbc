"""The fast path inside a node: GPUs read each other's memory directly, without NCCL.

Every rank has to see all devices, so rank processes run with `ENVIRONMENT`. NVLink multicast stays off.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._C._distributed_c10d import ProcessGroup, _register_process_group, _SymmetricMemory

from actors.communicators.gloo import gloo_group
from actors.communicators.peers import Peers
from actors.communicators.rendezvous import Rendezvous
from builders.kernels.reduce import MOST_BLOCKS, MOST_RANKS, PeerBuffers, inbox_shape

ENVIRONMENT: Mapping[str, str] = {
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
"""What a rank's process has to be started with."""

BUFFER_BYTES = 16 << 20
"""Larger tensors go through NCCL."""

ONE_SHOT_BYTES = 1 << 20
"""Divided by the ranks: up to here everyone reads all of everything, beyond each one reduces its part."""

_DTYPES = (torch.float32, torch.bfloat16)
"""What PyTorch's kernels add up."""

_ALIGNED_BYTES = 16


class SymmetricMemory:
    """See `actors.communicators.peers.Peers`: an all-reduce of its own, everything else from `base`.

    Kernels that wait for a dead peer cannot be ended but by ending the process: `finish` still raises.
    """

    def __init__(self, place: Rendezvous, base: Peers) -> None:
        self.rank, self.size, self._base = place.index, place.size, base
        self._name = _shared_name(place)
        self._group = _register(place, self._name)  # known by its name while this lives
        _SymmetricMemory.set_group_info(self._name, place.index, place.size, place.scope)
        device = torch.device("cuda", torch.cuda.current_device())
        size = BUFFER_BYTES + 8 * math.prod(inbox_shape(place.size))
        buffer = _SymmetricMemory.empty_strided_p2p((size,), (1,), torch.uint8, device).zero_()
        torch.cuda.synchronize(device)  # a peer may write to its part as soon as all have met
        self._handle = _SymmetricMemory.rendezvous(buffer, self._name)  # mapped while this lives
        self._inboxes = _peer_buffers(self._handle)
        self._buffers = {dtype: buffer.view(dtype) for dtype in _DTYPES}
        self._one_shot_bytes = ONE_SHOT_BYTES // place.size
        for num_bytes in (self._one_shot_bytes, BUFFER_BYTES):  # what loads on first use, no graph can hold
            self.all_reduce(torch.zeros(num_bytes // 4, device=device))
        self.finish()

    @property
    def buffers(self) -> PeerBuffers | None:
        return self._inboxes

    def all_reduce(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        if not self._fits(x):
            return self._base.all_reduce(x)
        shared = self._buffers[x.dtype][: x.numel()].view(x.shape)
        if x.nbytes <= self._one_shot_bytes:
            return torch.ops.symm_mem.one_shot_all_reduce_copy(shared, x, "sum", self._name)  # type: ignore[no-any-return]
        shared.copy_(x)
        torch.ops.symm_mem.two_shot_all_reduce_(shared, "sum", self._name)
        # The next copy into the buffer is behind this one, and no peer writes to it before it has seen that.
        return shared.clone()

    def all_gather(self, x: Tensor) -> Tensor:
        return self._base.all_gather(x)

    def broadcast(self, x: Tensor, root: int) -> Tensor:
        return self._base.broadcast(x, root)

    def send(self, x: Tensor, to: int) -> None:
        self._base.send(x, to)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        return self._base.receive(shape, dtype, source)

    def finish(self, done: torch.cuda.Event | None = None) -> None:
        self._base.finish(done)

    def close(self) -> None:
        self._base.close()

    def abort(self) -> None:
        self._base.abort()

    def _fits(self, x: Tensor) -> bool:
        """What the kernels take: every rank's part is a whole number of vector loads."""
        return (
            x.dtype in _DTYPES
            and 0 < x.nbytes <= BUFFER_BYTES
            and x.nbytes % (_ALIGNED_BYTES * self.size) == 0
            and x.data_ptr() % _ALIGNED_BYTES == 0
        )


def _peer_buffers(handle: _SymmetricMemory) -> PeerBuffers | None:
    """The part behind what PyTorch's kernels use."""
    ranks, rank = handle.world_size, handle.rank
    if ranks > MOST_RANKS:
        return None
    start = BUFFER_BYTES // 8
    inboxes = [handle.get_buffer(peer, inbox_shape(ranks), torch.int64, start) for peer in range(ranks)]
    epochs = torch.zeros(MOST_BLOCKS, dtype=torch.int32, device=inboxes[rank].device)
    others = tuple(inboxes[:rank] + inboxes[rank + 1 :])
    return PeerBuffers(rank=rank, inbox=inboxes[rank], others=others, epochs=epochs)


def _register(place: Rendezvous, name: str) -> ProcessGroup:
    """PyTorch looks for a group of processes by that name; of this one it uses nothing but who is in it."""
    group = ProcessGroup(place.scope, place.index, place.size)
    group._set_group_name(name)  # type: ignore[arg-type]
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, gloo_group(place))
    group._set_default_backend(ProcessGroup.BackendType.GLOO)
    _register_process_group(name, group)  # type: ignore[arg-type]
    return group


def _shared_name(place: Rendezvous) -> str:
    """PyTorch keeps groups by name as long as the process lives: no two may have the same."""
    if place.index == 0:
        place.scope.set("symmetric", f"{place.name}-{uuid.uuid4().hex}")
    return place.scope.get("symmetric").decode()
