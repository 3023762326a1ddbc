"""The API over an engine in this process, without a cluster's services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from starlette.applications import Starlette
from transformers import PreTrainedTokenizerBase

from actors.detokenizer import Words
from actors.open_generator import GeneratorOptions, open_generator
from builders.errors import UserError
from cluster.access import Access
from cluster.api import create_app
from cluster.api_choice import most_prompt_tokens
from cluster.api_config import ApiConfig
from cluster.encoder import Encoder
from cluster.engine_client import EngineClient, facts_of
from cluster.recovery import RecoveringEngine, RecoveringSource
from cluster.served_model import ServedModel
from cluster.token_texts import TokenTexts
from cluster.tokenizer import open_tokenizer
from cluster.tool_formats import ToolFormatName
from cluster.tools import notation_of


def local_app(
    engine_dir: Path,
    config: ApiConfig | None = None,
    *,
    access: Access | None = None,
    name: str | None = None,
    generator: GeneratorOptions | None = None,
    tokenizer_dir: Path | None = None,
    chat_template: str | None = None,
    tool_format: ToolFormatName | None = None,
) -> Starlette:
    """The engine is loaded when the application starts, and closed when it ends."""
    config = config or ApiConfig()
    tokenizer = open_tokenizer(engine_dir, tokenizer_dir)
    if tokenizer is None:
        raise UserError(f"{engine_dir}: has no tokenizer, and serves texts; name one with --tokenizer_dir")

    @asynccontextmanager
    async def opening() -> AsyncIterator[Sequence[ServedModel]]:
        known_as = name or engine_dir.resolve().name
        reopen = partial(open_generator, engine_dir, generator)
        source = await asyncio.to_thread(RecoveringSource, known_as, reopen)
        facts = facts_of(known_as, source.manifest, source.eos)
        engine = RecoveringEngine(source, facts, max_waiting=config.max_waiting)
        model = served(engine, tokenizer, config, chat_template=chat_template, tool_format=tool_format)
        try:
            yield [model]
        finally:
            await model.close()

    return create_app(opening, config, access=access)


def served(
    engine: EngineClient,
    tokenizer: PreTrainedTokenizerBase,
    config: ApiConfig,
    *,
    chat_template: str | None = None,
    tool_format: ToolFormatName | None = None,
) -> ServedModel:
    """An engine with its tokenizer."""
    encoder = Encoder(
        tokenizer,
        chat_template=chat_template,
        max_inline_chars=config.max_inline_chars,
        max_waiting_chars=config.max_encoding_chars,
        max_tokens=most_prompt_tokens(config, engine.facts),
    )
    tools = notation_of(tokenizer, encoder.template, tool_format)
    return ServedModel(
        engine=engine,
        encoder=encoder,
        words=Words(tokenizer, shown=tools.form.marks if tools.form else ()),
        texts=TokenTexts(tokenizer),
        created=int(time.time()),
        tools=tools,
    )
