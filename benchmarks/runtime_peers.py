"""A peer on record on the same kind of machine, and what to reach: data for `benchmarks/runtime.py`.

vLLM 0.26.0 with its defaults (full CUDA graphs, torch.compile, FlashAttention 3) on one NVIDIA H200, measured
on 2026-11-20: an 8B Llama's shape, bfloat16, random weights. Its start, from the process's to the first
token, is with dummy weights: 20 s of imports and 72 s of initialization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.runtime_cases import Case
from benchmarks.runtime_figures import Figures

PEER = "vLLM 0.26.0"
SOURCE = "vLLM 0.26.0 with its defaults on one H200, 2026-11-20, is on record"
SHAPE = "llama-8b"


@dataclass(frozen=True, kw_only=True)
class OnRecord:
    """A case of one device: what a peer does, and what is to be reached."""

    peer: Figures
    goal: Figures


CASES: Mapping[Case, OnRecord] = {
    Case(batch=1, tokens_in=128, tokens_out=256): OnRecord(
        peer=Figures(decode_step_s=4.94e-3, decode_tokens_per_s=202),
        goal=Figures(decode_tokens_per_s=250),
    ),
    Case(batch=8, tokens_in=32, tokens_out=128): OnRecord(
        peer=Figures(decode_step_s=5.00e-3),
        goal=Figures(decode_step_s=4.2e-3),
    ),
    Case(batch=16, tokens_in=128, tokens_out=256): OnRecord(
        peer=Figures(decode_step_s=5.12e-3),
        goal=Figures(decode_step_s=4.4e-3),
    ),
    Case(batch=64, tokens_in=512, tokens_out=256): OnRecord(
        peer=Figures(decode_step_s=6.66e-3, output_tokens_per_s=6659, prefill_tokens_per_s=43_000),
        goal=Figures(decode_step_s=5.8e-3, output_tokens_per_s=7500, prefill_tokens_per_s=45_000),
    ),
    Case(batch=256, tokens_in=512, tokens_out=256): OnRecord(
        peer=Figures(decode_step_s=14.0e-3, output_tokens_per_s=9982),
        goal=Figures(decode_step_s=12.3e-3, output_tokens_per_s=11_000),
    ),
}

START_PEER_S, START_GOAL_S = 92.0, 12.0
SPEEDUP_GOALS: Mapping[int, float] = {2: 1.7, 4: 2.6, 8: 3.5}
"""At batch 1, by tensor parallel ranks, against one."""
