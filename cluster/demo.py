"""`rankforge demo`: a tiny model, converted, built, run, and checked against Transformers."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from builders.engine_folder import load_engine
from builders.ops import Step
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.convert import convert
from cluster.convert_options import ConvertOptions
from cluster.demo_options import DemoOptions
from cluster.inspect import inspect, show
from cluster.inspect_engine import inspect_engine, show_engine
from cluster.progress import stderr_reporter

_PROMPT = [[1, 17, 42, 7, 99]]
_NEW_TOKENS = 16


def demo(options: DemoOptions, console: Console) -> None:
    """Make, convert, build, look, run, compare."""
    with ExitStack() as stack:
        folder = options.output_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        console.rule("1. a tiny LLaMA with random weights, as Transformers saves it")
        model = _make_model(folder / "model")
        console.print(f"{model.num_parameters():,} parameters in {folder / 'model'}")
        console.rule("2. rankforge convert --tp_size 2 --pp_size 2")
        _convert(folder, "tp2pp2", tp_size=2, pp_size=2)
        show(inspect(folder / "tp2pp2", verify=True), console)
        console.rule("3. rankforge build: four ranks share two sets of programs")
        _build(folder, "tp2pp2")
        show_engine(inspect_engine(folder / "tp2pp2-engine", verify=True), console)
        console.rule("4. an engine of one rank decodes with a paged cache")
        _convert(folder, "single", tp_size=1, pp_size=1)
        _build(folder, "single")
        _compare(_decode(folder / "single-engine"), model, console)


def _make_model(folder: Path) -> LlamaForCausalLM:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def _convert(folder: Path, name: str, *, tp_size: int, pp_size: int) -> None:
    options = ConvertOptions(
        model_dir=str(folder / "model"),
        output_dir=folder / name,
        dtype="float32",
        tp_size=tp_size,
        pp_size=pp_size,
        overwrite=True,
    )
    print(convert(options, stderr_reporter(as_json=False)).to_text())


def _build(folder: Path, name: str) -> None:
    """Without the compiler, which would take a quarter of a minute."""
    options = BuildOptions(
        checkpoint_dir=folder / name,
        output_dir=folder / f"{name}-engine",
        no_compile=True,
        max_input_len=32,
        max_seq_len=32,
        tokens_per_block=8,
        overwrite=True,
    )
    print(build(options, stderr_reporter(as_json=False)).to_text())


@torch.no_grad()
def _decode(folder: Path) -> list[int]:
    """Feed the prompt, then one token at a time."""
    engine = load_engine(folder, 0, num_blocks=4)
    ids = list(_PROMPT[0])
    fed = 0
    for _ in range(_NEW_TOKENS):
        logits = engine.forward(torch.tensor(ids[fed:]), _step(fed, len(ids)))
        fed = len(ids)
        ids.append(int(logits[-1].argmax()))
    return ids


def _step(start: int, stop: int) -> Step:
    """One sequence in cache blocks 0 to 3; only the last token's logits are wanted."""
    return Step(
        positions=torch.arange(start, stop),
        sequences=torch.zeros(stop - start, dtype=torch.int64),
        lengths=torch.tensor([stop]),
        block_table=torch.arange(4)[None],
        wanted=torch.tensor([stop - start - 1]),
    )


def _compare(ours: list[int], model: LlamaForCausalLM, console: Console) -> None:
    theirs = _greedy(model)
    console.print(f"rankforge    {ours}")
    console.print(f"Transformers {theirs}")
    if ours != theirs:
        raise RuntimeError("the tokens differ: this is a bug")
    console.print("the same tokens")


@torch.no_grad()
def _greedy(model: LlamaForCausalLM) -> list[int]:
    ids = torch.tensor(_PROMPT)
    for _ in range(_NEW_TOKENS):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0].tolist()  # type: ignore[no-any-return]
