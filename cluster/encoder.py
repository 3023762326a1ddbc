"""Texts and messages to tokens without a stop of the event loop: short ones at once, others in a thread.

A short text takes less than the way to a thread and back. In the thread, tokenizers of Rust are called in the
one way that lets other threads run: `encode` would stop them for as long as it takes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from builders.errors import BusyError, UserError
from cluster.api_errors import invalid
from cluster.text_bound import longest_token

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
        max_waiting_chars: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """A text that cannot but have more than `max_tokens` is refused before it is encoded."""
        self._tokenizer, self._max_inline = tokenizer, max_inline_chars
        self._waiting, self._max_waiting, self._counting = 0, max_waiting_chars, threading.Lock()
        self._max_tokens, self._longest = max_tokens, longest_token(tokenizer)
        self._encode = _encoder(tokenizer)
        self.template = chat_template or tokenizer.chat_template
        """The chat template; None where there is none."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")

    async def text(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """A text's tokens, with those that the tokenizer puts around texts."""
        self._check(text)
        return await self._run(len(text), lambda: self._encode(text, special))

    async def chat(self, messages: Messages, tools: Messages | None) -> tuple[int, ...]:
        """What the model is to go on with after these messages."""
        if self.template is None:
            raise UserError("messages: the model has no chat template; use /v1/completions, or configure one")
        size = sum(len(str(one)) for one in (*messages, *(tools or ())))
        return await self._run(size, lambda: self._encode(self._checked(messages, tools), False))

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

    def _checked(self, messages: Messages, tools: Messages | None) -> str:
        text = self.rendered(messages, tools)
        self._check(text)
        return text

    def _check(self, text: str) -> None:
        if self._max_tokens and self._longest and len(text) > self._max_tokens * self._longest:
            raise invalid(
                f"Prompts may have {self._max_tokens} tokens. However, yours has {len(text)} characters, and "
                f"no token stands for more than {self._longest}.",
                code="context_length_exceeded",
            )

    async def _run(self, size: int, work: Callable[[], list[int]]) -> tuple[int, ...]:
        if size <= self._max_inline:
            return tuple(work())
        if self._max_waiting and self._waiting and self._waiting + size > self._max_waiting:
            raise BusyError(f"{self._waiting} characters of other texts wait to be encoded already")
        self._count(size)
        job = self._thread.submit(work)
        job.add_done_callback(lambda _: self._count(-size))
        tokens: list[int] = await asyncio.wrap_future(job)
        return tuple(tokens)

    def _count(self, size: int) -> None:
        """From any thread."""
        with self._counting:
            self._waiting += size


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, bool], list[int]]:
    """Of a text, with or without special tokens around it."""
    if getattr(type(tokenizer), "_encode_plus", None) is PreTrainedTokenizerFast._encode_plus:
        backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return lambda text, special: backend.encode_batch_fast([text], add_special_tokens=special)[0].ids
    return lambda text, special: tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
