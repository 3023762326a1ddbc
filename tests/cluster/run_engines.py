"""A tiny model with a tokenizer, its engines, and what Transformers generates with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.progress import LineReporter
from tests.actors.test_detokenizer import byte_level
from tests.tiny import save_llama

LIMITS = {"max_batch_size": 4, "max_input_len": 40, "max_seq_len": 64, "max_num_tokens": 64}


def flags(**values: object) -> list[object]:
    """Options as a command line has them."""
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model and where it lies."""

    folder: Path
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast

    def engine(self, name: str = "engine", **changes: Any) -> Path:
        """Interpreted: compiling takes longer than all that is tested here."""
        options = BuildOptions(
            model_dir=str(self.folder / "model"),
            output_dir=self.folder / name,
            dtype="float32",
            no_compile=True,
            tokens_per_block=8,
            max_beam_width=3,
            **{**LIMITS, **changes},
        )
        build(options, LineReporter(StringIO(), as_json=False))
        return self.folder / name

    @torch.no_grad()
    def generated(self, prompt: Sequence[int], *, end: int | None = None, **settings: Any) -> list[list[int]]:
        """The continuations that Transformers finds, without what fills them up."""
        end = self.tokenizer.eos_token_id if end is None else end
        found = self.model.generate(
            torch.tensor([prompt]), do_sample=False, eos_token_id=end, pad_token_id=0, **settings
        )
        rows = [row[len(prompt) :] for row in found.tolist()]
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def texts(self, prompts: Sequence[str], count: int) -> dict[str, str]:
        """What Transformers says after each, in so many tokens whatever they are."""
        texts = {}
        for prompt in prompts:
            (found,) = self.generated(self.tokenizer.encode(prompt), end=-1, max_new_tokens=count)
            texts[prompt] = self.tokenizer.decode(found, skip_special_tokens=True)
        return texts


def make(folder: Path) -> Made:
    tokenizer = byte_level()
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    sizes = {"vocab_size": 410, "num_hidden_layers": 2, "initializer_range": 0.3}
    save_llama(folder / "model", **sizes, **ids, pad_token_id=0)
    tokenizer.save_pretrained(folder / "model")
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return Made(folder=folder, model=model, tokenizer=tokenizer)
