"""What any communicator must do, as members do it; on a GPU each has the device of its number."""

from __future__ import annotations

import torch
from torch import Tensor

from actors.communicators.peers import Peers

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64]


def device_of(index: int) -> str:
    return f"cuda:{index}" if torch.cuda.is_available() else "cpu"


def given(index: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Small whole numbers, different for every member: their sums are exact in every dtype."""
    generator = torch.Generator().manual_seed(index)
    return torch.randint(-8, 8, shape, generator=generator).to(dtype).to(device_of(index))


def exchange(peers: Peers, index: int, size: int = 2) -> list[str]:
    """Every operation against its meaning, for several sizes, dtypes and layouts; gives what differs."""
    return [
        *(_reduced(peers, index, size, shape, dtype) for shape in SHAPES for dtype in DTYPES),
        *(_gathered(peers, index, size, shape, dtype) for shape in SHAPES for dtype in DTYPES),
        _transposed(peers, index, size),
        *(_broadcast(peers, index, root) for root in range(size)),
        *(_passed_on(peers, index, size, tokens) for tokens in (1, 7, 300)),
    ]


SHAPES = [(1, 48), (3, 101), (5, 7, 16), (64, 4096)]
"""From a byte count that no vector load divides."""

if torch.cuda.is_available():
    SHAPES.append((1024, 8192))  # beyond every fast path's buffer


def differing(problems: list[str]) -> list[str]:
    return [problem for problem in problems if problem]


def _compared(what: str, ours: Tensor, wanted: Tensor) -> str:
    fine = ours.dtype == wanted.dtype and torch.equal(ours.cpu(), wanted.cpu())
    return "" if fine else f"{what}: {tuple(ours.shape)} {ours.dtype} differs"


def _reduced(peers: Peers, index: int, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    x = given(index, *shape, dtype=dtype)
    out = peers.all_reduce(x)
    x.fill_(99)  # a member may overwrite what it gave right after
    wanted = torch.stack([given(other, *shape, dtype=dtype).cpu() for other in range(size)]).sum(0).to(dtype)
    return _compared(f"all_reduce {shape} {dtype}", out, wanted)


def _gathered(peers: Peers, index: int, size: int, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    out = peers.all_gather(given(index, *shape, dtype=dtype))
    wanted = torch.cat([given(other, *shape, dtype=dtype).cpu() for other in range(size)], dim=-1)
    return _compared(f"all_gather {shape} {dtype}", out, wanted)


def _transposed(peers: Peers, index: int, size: int) -> str:
    """Inputs that do not lie in order."""
    wanted = torch.stack([given(other, 6, 4).cpu() for other in range(size)])
    reduced = _compared("all_reduce of a view", peers.all_reduce(given(index, 6, 4).t()), wanted.sum(0).t())
    gathered = peers.all_gather(given(index, 6, 4).t())
    return reduced or _compared("all_gather of a view", gathered, torch.cat(list(wanted.mT), dim=-1))


def _broadcast(peers: Peers, index: int, root: int) -> str:
    out = peers.broadcast(given(index, 4, dtype=torch.int64), root)
    return _compared(f"broadcast from {root}", out, given(root, 4, dtype=torch.int64))


def _passed_on(peers: Peers, index: int, size: int, tokens: int) -> str:
    """Along the line, as a pipeline does, several before anybody waits."""
    problem = ""
    for turn in range(3):
        if index > 0:
            got = peers.receive((tokens, 64), torch.bfloat16, index - 1)
            problem = problem or _compared("receive", got, _sent(index - 1, turn, tokens))
        if index < size - 1:
            peers.send(_sent(index, turn, tokens).to(device_of(index)), index + 1)
    peers.finish()
    return problem


def _sent(index: int, turn: int, tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * index + turn)
    return torch.randn(tokens, 64, generator=generator).bfloat16()
