"""The estimate of a step's memory, against what a decoder really holds between its operators."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from builders.checkpoint import Manifest, Provenance
from builders.constants import rank_constants, set_constants
from builders.decoder import empty_decoder
from builders.limits import Limits
from builders.mapping import Mapping
from builders.memory import activation_bytes
from builders.ops import Step
from tests.builders.test_trt_network import spec_of
from tests.trt_ranks import made_up

LIMITS = Limits(max_batch_size=4, max_input_len=64, max_seq_len=64, max_num_tokens=256)


class Peak(TorchDispatchMode):
    """The most bytes that results of operators held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            address, size = _address(tensor), tensor.untyped_storage().nbytes()
            if address not in held | self._known:
                self._known.add(address)
                self.now += size
                weakref.finalize(tensor.untyped_storage(), self._gone, address, size)
        self.most = max(self.most, self.now)
        return made

    def _gone(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def _tensors(made: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def manifest(name: str, **changes: Any) -> Manifest:
    spec = replace(spec_of(name), vocab_size=1024, **changes)
    return Manifest(
        spec=spec, mapping=Mapping(), dtype="float32", source=Provenance(model="test"), random_seed=0
    )


@torch.no_grad()
def measured(made: Manifest) -> int:
    """A prefill of every sequence at the limits, with as many rows of logits as there may be."""
    decoder = empty_decoder(made.spec, made.mapping, 0)
    decoder.load_state_dict(made_up(made.spec, made.mapping, 0, torch.float32), assign=True)
    set_constants(decoder, rank_constants(made.spec, made.mapping, 0))
    batch, tokens = LIMITS.max_batch_size, LIMITS.max_num_tokens // LIMITS.max_batch_size
    caches = decoder.new_caches(batch, tokens)
    step = Step(
        positions=torch.arange(tokens).repeat(batch),
        sequences=torch.arange(batch).repeat_interleave(tokens),
        lengths=torch.full((batch,), tokens),
        block_table=torch.arange(batch)[:, None],
        wanted=torch.arange(LIMITS.max_logits),
    )
    with Peak() as peak:
        decoder(torch.zeros(batch * tokens, dtype=torch.int64), step, caches)
    return peak.most


@pytest.mark.parametrize("name", ["llama2-gqa", "gpt2", "mpt", "mixtral", "starcoder2"])
def test_estimate_is_near_what_a_decoder_holds(name: str) -> None:
    made = manifest(name)
    found, truth = activation_bytes(made, 0, LIMITS), measured(made)
    assert truth / 2 < found < truth * 2


def test_logits_count_where_they_are_the_most() -> None:
    wide = replace(manifest("gpt2"), spec=replace(spec_of("gpt2"), vocab_size=100_000))
    assert activation_bytes(wide, 0, LIMITS) > 4 * 100_000 * 8
    assert activation_bytes(replace(wide, mapping=Mapping(pp_size=3)), 0, LIMITS) < 4 * 100_000 * 8
