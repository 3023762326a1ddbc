"""Texts and messages to tokens without a stop of the event loop: short ones at once, others in a thread.

A short text takes less than the way to a thread and back. In the thread, tokenizers of Rust are called in the
one way that lets other threads run: `encode` would stop them for as long as it takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from builders.errors import UserError

Messages = Sequence[dict[str, Any]]
_REFUSALS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template makes of messages that it was not written for."""


class Encoder:
    """A tokenizer and its chat template, for one event loop."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        max_inline_chars: int = 512,
    ) -> None:
        self._tokenizer, self._max_inline = tokenizer, max_inline_chars
        self._encode = _encoder(tokenizer)
        self.template = chat_template or tokenizer.chat_template
        """The chat template; None where there is none."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    async def text(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """A text's tokens, with those that the tokenizer puts around texts."""
        return await self._run(len(text), lambda: self._encode(text, special))

    async def chat(self, messages: Messages, tools: Messages | None) -> tuple[int, ...]:
        """What the model is to go on with after these messages."""
        if self.template is None:
            raise UserError("messages: the model has no chat template; use /v1/completions, or configure one")
        size = sum(len(str(one)) for one in (*messages, *(tools or ())))
        return await self._run(size, lambda: self._encode(self.rendered(messages, tools), False))

    def rendered(self, messages: Messages, tools: Messages | None) -> str:
        """As the template writes them: it has the tokens that begin a text."""
        try:
            return cast(
                str,
                self._tokenizer.apply_chat_template(
                    [*messages],
                    tools=cast(Any, [*tools] if tools else None),
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=True,
                ),
            )
        except _REFUSALS as error:
            raise UserError(f"messages: the model's chat template refuses them: {error}") from error

    def decoded(self, tokens: Sequence[int]) -> str:
        """All of them, special ones too."""
        return str(self._tokenizer.decode([*tokens], skip_special_tokens=False))

    def close(self) -> None:
        """Does not wait for a text that is being encoded."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, size: int, work: Callable[[], list[int]]) -> tuple[int, ...]:
        if size <= self._max_inline:
            return tuple(work())
        return tuple(await asyncio.get_running_loop().run_in_executor(self._thread, work))


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, bool], list[int]]:
    """Of a text, with or without special tokens around it."""
    if getattr(type(tokenizer), "_encode_plus", None) is PreTrainedTokenizerFast._encode_plus:
        backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return lambda text, special: backend.encode_batch_fast([text], add_special_tokens=special)[0].ids
    return lambda text, special: tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
