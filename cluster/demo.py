"""`rankforge demo`: a tiny chat model, converted, built, served over HTTP, and talked to."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from builders.errors import UserError
from cluster.build import build
from cluster.build_options import BuildOptions
from cluster.convert import convert
from cluster.convert_options import ConvertOptions
from cluster.demo_options import MODEL_DIR, DemoOptions
from cluster.inspect import inspect, show
from cluster.inspect_engine import inspect_engine, show_engine
from cluster.progress import stderr_reporter
from cluster.serve_options import ServeOptions

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam

NAME = "pip"
"""What the model is called over HTTP."""
QUESTIONS = (
    "Hello!",
    "My name is Mara.",
    "Where does Anna live?",
    "What pet does she have?",
    "What is my name?",
    "How much is a cake?",
    "What is the capital of France?",
)
_BATCH, _LONGEST, _BLOCK = 8, 512, 16
"""Texts at once, tokens of each, tokens of a block: what the engine is built for."""
_DRAIN_S = 3.0
"""What a conversation under way is given at the end."""


def demo(options: DemoOptions, console: Console) -> None:
    """Convert, build, serve, talk, and stay up."""
    with ExitStack() as stack:
        folder = options.output_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        console.rule(f"1. rankforge convert --model_dir {MODEL_DIR.name} --tp_size {options.tp_size}")
        show(inspect(_convert(folder / "shards", options.tp_size), verify=True), console)
        console.rule("2. rankforge build")
        engine = _build(folder / "shards", folder / "engine")
        show_engine(inspect_engine(engine, verify=True), console)
        console.rule(f"3. rankforge serve --name {NAME}")
        address = stack.enter_context(_served(engine, options.port))
        console.rule("4. a conversation, as the public openai client streams it")
        talk(address, console)
        console.rule()
        console.print(
            "ask it yourself:", curl(address), sep="\n", markup=False, highlight=False, soft_wrap=True
        )
        if not options.once:
            console.print(f"serving at {address} until stopped (Ctrl-C)", highlight=False)
            threading.Event().wait()


def _convert(shards: Path, tp_size: int) -> Path:
    options = ConvertOptions(
        model_dir=str(MODEL_DIR), output_dir=shards, dtype="float32", tp_size=tp_size, overwrite=True
    )
    print(convert(options, stderr_reporter(as_json=False)).to_text())
    return shards


def _build(shards: Path, engine: Path) -> Path:
    """Without the compiler, which would take a quarter of a minute."""
    options = BuildOptions(
        checkpoint_dir=shards,
        output_dir=engine,
        no_compile=True,
        max_batch_size=_BATCH,
        max_input_len=_LONGEST - 1,
        max_seq_len=_LONGEST,
        tokens_per_block=_BLOCK,
        overwrite=True,
    )
    print(build(options, stderr_reporter(as_json=False)).to_text())
    return engine


@contextmanager
def _served(engine: Path, port: int) -> Iterator[str]:
    """The address at which it is served, from when it takes requests on; its end is the service's."""
    from cluster.serve import served
    from cluster.serve_port import free_port

    options = ServeOptions(model=str(engine), name=NAME, port=port or free_port(), drain_s=_DRAIN_S)
    with served(options, sys.stderr) as service:
        yield service.url


def talk(address: str, console: Console) -> None:
    """Ask one question after the other, and print answers as they come."""
    try:
        from openai import OpenAI
    except ImportError as error:
        raise UserError("the demo talks through the openai package: pip install 'rankforge[demo]'") from error

    messages: list[ChatCompletionMessageParam] = []
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            console.print(f"{'you':>4}  {question}", markup=False, highlight=False)
            console.print(f"{NAME:>4}  ", end="", style="bold")
            answer = ""
            for piece in _answer(client, messages):
                console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
                answer += piece
            console.print()
            messages.append({"role": "assistant", "content": answer})


def _answer(client: OpenAI, messages: list[ChatCompletionMessageParam]) -> Iterator[str]:
    with client.chat.completions.create(model=NAME, messages=messages, temperature=0, stream=True) as events:
        for event in events:
            yield event.choices[0].delta.content or ""


def curl(address: str) -> str:
    """A line for a shell."""
    body = {"model": NAME, "messages": [{"role": "user", "content": QUESTIONS[2]}], "temperature": 0}
    header = "Content-Type: application/json"
    return shlex.join(["curl", f"{address}/v1/chat/completions", "-H", header, "-d", json.dumps(body)])
