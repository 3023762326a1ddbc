"""/v1/completions: from texts or tokens to prompts, from growing texts to answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from msgspec import UnsetType

from cluster.api_answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from cluster.api_choice import check_tokens
from cluster.api_errors import invalid
from cluster.api_requests import CompletionBody
from cluster.forms import Heading, Prompt
from cluster.growing_text import Growth
from cluster.logprob_forms import CompletionScores, of_prompt
from cluster.served_model import ServedModel


def given_prompts(body: CompletionBody) -> Sequence[str | list[int]]:
    """One of each, whichever way they are written."""
    given = body.prompt
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid("Invalid 'prompt': empty array.", "prompt", "empty_array")
    kinds = {type(one) for one in given}
    if len(kinds) > 1:
        raise invalid("Invalid 'prompt': texts and tokens are mixed.", "prompt", "invalid_type")
    return cast("Sequence[str | list[int]]", [given] if kinds == {int} else given)


async def completion_prompts(body: CompletionBody, model: ServedModel) -> list[Prompt]:
    """Texts are encoded; tokens are taken as they are."""
    return [await _prompt(one, bool(body.echo), model) for one in given_prompts(body)]


async def _prompt(given: str | list[int], is_echoed: bool, model: ServedModel) -> Prompt:
    if isinstance(given, str):
        return Prompt(tokens=await model.encoder.text(given), text=given)
    if not all(type(token) is int for token in given):
        raise invalid("Invalid 'prompt': tokens must be integers.", "prompt", "invalid_type")
    check_tokens("prompt", given, model.facts.vocab_size)
    return Prompt(tokens=tuple(given), text=model.encoder.decoded(given) if is_echoed else "")


class CompletionForm:
    """How one request for completions is answered."""

    def __init__(
        self, body: CompletionBody, heading: Heading, model: ServedModel, prompts: Sequence[Prompt]
    ) -> None:
        """There is a prompt for every text."""
        self._heading, self._prompts = heading, prompts
        self._echo, self._with_logprobs = bool(body.echo), body.logprobs is not None
        self._scores = [CompletionScores(model.texts, model.words, bool(body.logprobs)) for _ in prompts]
        self._begun: set[int] = set()

    def part(self, index: int, growth: Growth, usage: Usage | UnsetType | None) -> Completion | None:
        is_first = self._echo and index not in self._begun
        if not (growth.text or growth.finish or growth.scored or is_first):
            return None
        return self._answer([self._choice(index, growth)], usage)

    def usage_part(self, usage: Usage) -> Completion:
        return self._answer([], usage)

    def whole(self, texts: list[Growth], usage: Usage) -> Completion:
        return self._answer([self._choice(index, text) for index, text in enumerate(texts)], usage)

    def _answer(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(**self._heading, choices=choices, usage=usage)

    def _choice(self, index: int, growth: Growth) -> CompletionChoice:
        is_first = self._echo and index not in self._begun
        self._begun.add(index)
        text = self._prompts[index].text + growth.text if is_first else growth.text
        return CompletionChoice(index, text, self._logprobs(index, growth, is_first), growth.finish)

    def _logprobs(self, index: int, growth: Growth, is_first: bool) -> CompletionLogprobs | None:
        """With the token that ended it: evaluations count on one for every token that was made."""
        if not self._with_logprobs:
            return None
        scored = (*growth.scored, *growth.ended_by)
        if not is_first:
            return self._scores[index].of(scored)
        prompt = self._prompts[index]
        return self._scores[index].of(scored, of_prompt(prompt.tokens, growth.prompt_logprobs), prompt.text)
