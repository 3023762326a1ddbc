"""Trains the demo's model: rows of whole dialogues, AdamW."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cluster.demo_maker.dialogues import Dialogue, dialogues
from cluster.demo_maker.tokens import sequenced


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, beside versions and machine."""

    seed: int = 0
    practice: float = 0.0
    """The part of all questions that are about what takes longest to learn."""
    steps: int = 4000
    batch_tokens: int = 1024
    row_tokens: int = 128
    """Of the rows of most batches."""
    longest: int = 512
    """Of the others': the longest context that the model sees."""
    long_every: int = 5
    """One batch of so many has long rows, in which attention takes most of the time."""
    vocab_size: int = 1280
    hidden_size: int = 256
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    learning_rate: float = 2e-3
    """The highest; it rises and falls in lines."""
    warmup: float = 0.05
    """The part of all steps in which it rises."""
    bfloat16: bool = True
    """Multiply in bfloat16, as processors that can do it fast."""

    @property
    def config(self) -> LlamaConfig:
        """No token fills up rows: one that did would have no embedding."""
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.longest,
            bos_token_id=0,
            eos_token_id=3,
        )


Batch = tuple[Tensor, Tensor]
Report = Callable[[int, float], None]


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Tokens and weights without end, in rows with one more than is predicted."""
    source = dialogues(recipe.seed, practice=recipe.practice)
    for number in count(1):
        length = recipe.row_tokens if number % recipe.long_every else recipe.longest
        rows = [_row(source, tokenizer, length + 1) for _ in range(recipe.batch_tokens // length)]
        ids, weights = zip(*rows, strict=True)
        yield torch.tensor(ids), torch.tensor(weights)


def _row(
    source: Iterator[Dialogue], tokenizer: PreTrainedTokenizerFast, length: int
) -> tuple[list[int], list[float]]:
    """It begins with a dialogue; what does not fit is dropped."""
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        one = sequenced(tokenizer, next(source))
        ids += one.ids
        weights += one.weights
    return ids[:length], weights[:length]


def loss_of(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The mean over what is predicted, by weight."""
    ids, weights = batch
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
    losses = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    wanted = weights[:, 1:].flatten()
    return (losses * wanted).sum() / wanted.sum()


def new_model(recipe: Recipe) -> LlamaForCausalLM:
    """With random weights."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(recipe.config)


def train(
    model: LlamaForCausalLM, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, report: Report
) -> None:
    """From the weights that it has; the report hears every step's loss."""
    model.train()
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step, batch in zip(range(recipe.steps), batches(recipe, tokenizer), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _rate(step, recipe)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        report(step, loss.item())
    model.eval()


def _rate(step: int, recipe: Recipe) -> float:
    """Up in a line, then down in a longer one."""
    warmup = recipe.steps * recipe.warmup
    return min((step + 1) / warmup, (recipe.steps - step) / (recipe.steps - warmup))


class Log:
    """Prints the mean loss now and then."""

    def __init__(self, every: int = 100) -> None:
        self._every, self._losses, self._start = every, list[float](), time.monotonic()

    def __call__(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        if len(self._losses) == self._every:
            mean, seconds = sum(self._losses) / self._every, time.monotonic() - self._start
            print(f"step {step + 1}  loss {mean:.4f}  {seconds:.0f} s", flush=True)
            self._losses = []
