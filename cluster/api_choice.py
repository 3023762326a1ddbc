"""How tokens are chosen: sampling parameters from a request's fields, within the API's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from actors.grammar import Grammar
from actors.sampling_params import SamplingParams
from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError, invalid
from cluster.api_requests import ChatBody, CompletionBody, GenerateBody
from cluster.engine_client import ModelFacts

NumberT = TypeVar("NumberT", int, float)

_SAME = (
    "min_tokens temperature top_p min_p repetition_penalty presence_penalty frequency_penalty seed ignore_eos"
).split()
"""Fields that mean what the parameters of that name mean."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one request asks for, before its prompts are known."""

    params: SamplingParams
    """Its `max_tokens` is what is asked for, or else all that there is room for."""
    asked_tokens: int | None
    """None where the caller left it open."""
    returned: int
    """Texts to give of each prompt; those beside are only weighed."""

    @property
    def is_ranked(self) -> bool:
        """Some texts are left out, by their likelihood."""
        return self.returned < self.params.n

    def held_to(self, grammar: Grammar) -> Choice:
        """Texts of this form."""
        return replace(self, params=replace(self.params, grammar=grammar))


def choice_of(body: ChatBody | CompletionBody, config: ApiConfig, facts: ModelFacts) -> Choice:
    """Raises ApiError or UserError for what cannot be."""
    _check_stream(body)
    returned, params = _texts(body, config)
    asked, most_tokens = _tokens(body, config, facts)
    wanted = _logprobs(body, config)
    if wanted is not None and params.num_beams > 1:
        raise invalid("'logprobs' is not possible with 'use_beam_search'.", "logprobs")
    is_ranked = returned < params.n and params.num_beams == 1
    params = replace(
        params,
        max_tokens=most_tokens,
        stop=_stops(body, config),
        stop_token_ids=_stop_tokens(body, config, facts),
        logit_bias=_biases(body, config, facts),
        logprobs=0 if wanted is None and is_ranked else wanted,
        prompt_logprobs=wanted if _is_echoed(body) else None,
        **{name: value for name in _SAME if (value := getattr(body, name)) is not None},
    )
    return Choice(params=params, asked_tokens=asked, returned=returned)


def most_prompt_tokens(config: ApiConfig, facts: ModelFacts) -> int:
    """Of one prompt, whatever is asked for."""
    longest = facts.limits.max_seq_len
    return min(facts.limits.max_input_len, longest - 1, config.max_prompt_tokens or longest)


def fitted(choice: Choice, prompt: Sequence[int], config: ApiConfig, facts: ModelFacts) -> SamplingParams:
    """For one prompt: what there is room for. `param` of errors is set by who knows the field."""
    longest, most = facts.limits.max_seq_len, most_prompt_tokens(config, facts)
    if not prompt:
        raise invalid("The prompt has no tokens.", code="invalid_value")
    if len(prompt) > most:
        raise _too_long(f"Prompts may have {most} tokens. However, yours has {len(prompt)} tokens.")
    room = longest - len(prompt)
    asked = choice.asked_tokens
    if asked is not None and asked > room:
        raise _too_long(
            f"This model's maximum context length is {longest} tokens. However, you requested "
            f"{len(prompt) + asked} tokens ({len(prompt)} in the prompt, {asked} to generate)."
        )
    params = choice.params
    if params.min_tokens > room:
        raise _too_long(f"min_tokens={params.min_tokens}: there is room for {room} tokens.")
    return replace(params, max_tokens=min(params.max_tokens, room)) if params.max_tokens > room else params


def _too_long(message: str) -> ApiError:
    return invalid(message, code="context_length_exceeded")


def _tokens(body: ChatBody | CompletionBody, config: ApiConfig, facts: ModelFacts) -> tuple[int | None, int]:
    """How many are asked for, and how many that makes at most. A prompt alone takes one that is not given."""
    longest = facts.limits.max_seq_len - 1
    most, (name, asked) = min(longest, config.max_tokens or longest), _asked(body)
    if asked is None:
        return None, most if isinstance(body, ChatBody) else min(16, most)
    if asked < (0 if _is_echoed(body) else 1):
        raise invalid(f"Invalid '{name}': {asked} is less than 1.", name, "below_min_value")
    if asked > most:
        raise invalid(f"{name} is too large: {asked}. At most {most} are possible.", name)
    return asked, max(1, asked)


def _is_echoed(body: ChatBody | CompletionBody) -> bool:
    return isinstance(body, CompletionBody) and bool(body.echo)


def _asked(body: ChatBody | CompletionBody) -> tuple[str, int | None]:
    """With the name of the field that says it."""
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        return "max_completion_tokens", body.max_completion_tokens
    return "max_tokens", body.max_tokens


def _check_stream(body: GenerateBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options"
        )


def _texts(body: GenerateBody, config: ApiConfig) -> tuple[int, SamplingParams]:
    """How many to give, and how many to make of what kind."""
    n = 1 if body.n is None else _within("n", body.n, 1, config.max_n)
    beams = bool(body.use_beam_search)
    most = config.max_beams if beams else config.max_n
    best_of = n if body.best_of is None else _within("best_of", body.best_of, n, most)
    if beams:
        _within("n", n, 1, most)
        return n, _searched(body, n, best_of)
    if body.stream and best_of > n:
        raise invalid(f"best_of={best_of}: a stream gives all {best_of} texts; leave it out", "best_of")
    return n, SamplingParams(n=best_of, top_k=max(0, _top_k(body)))


def _top_k(body: GenerateBody) -> int:
    return _within("top_k", body.top_k or 0, -1, 2**31 - 1)


def _searched(body: GenerateBody, n: int, beams: int) -> SamplingParams:
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return SamplingParams(
        n=n,
        num_beams=beams,
        length_penalty=penalty,
        early_stopping=bool(body.early_stopping),
        top_k=1 if beams == 1 else 0,
    )


def _logprobs(body: ChatBody | CompletionBody, config: ApiConfig) -> int | None:
    if isinstance(body, CompletionBody):
        return None if body.logprobs is None else _within("logprobs", body.logprobs, 0, config.max_logprobs)
    if not body.logprobs:
        if body.top_logprobs is not None:
            raise invalid("'top_logprobs' is only allowed when 'logprobs' is enabled.", "top_logprobs")
        return None
    return _within("top_logprobs", body.top_logprobs or 0, 0, config.max_logprobs)


def _stops(body: GenerateBody, config: ApiConfig) -> tuple[str, ...]:
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    _bounded("stop", len(stops), config.max_stops)
    for stop in stops:
        if not 0 < len(stop) <= config.max_stop_chars:
            raise invalid(
                f"Invalid 'stop': a string of {len(stop)} characters; it must have 1 to "
                f"{config.max_stop_chars}.",
                "stop",
                "invalid_value",
            )
    return stops


def _stop_tokens(body: GenerateBody, config: ApiConfig, facts: ModelFacts) -> tuple[int, ...]:
    tokens = tuple(body.stop_token_ids or ())
    _bounded("stop_token_ids", len(tokens), config.max_stops)
    check_tokens("stop_token_ids", tokens, facts.vocab_size)
    return tokens


def _biases(body: GenerateBody, config: ApiConfig, facts: ModelFacts) -> Mapping[int, float]:
    given = body.logit_bias or {}
    _bounded("logit_bias", len(given), config.max_logit_bias)
    wrong = [name for name in given if not (name.isascii() and name.isdecimal() and len(name) <= 10)]
    if wrong:
        raise invalid(f"Invalid key in 'logit_bias': {wrong[0][:32]!r}. Keys are tokens.", "logit_bias")
    biases = {int(name): _within("logit_bias", value, -100, 100) for name, value in given.items()}
    check_tokens("logit_bias", tuple(biases), facts.vocab_size)
    return biases


def check_tokens(param: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Refuse tokens that the model does not have."""
    if tokens and (min(tokens) < 0 or max(tokens) >= vocab_size):
        raise invalid(
            f"Invalid '{param}': tokens must be from 0 to {vocab_size - 1}.", param, "invalid_value"
        )


def _bounded(param: str, count: int, most: int) -> None:
    if count > most:
        raise invalid(
            f"Invalid '{param}': array too long. Expected an array with maximum length {most}, but got "
            f"an array with length {count} instead.",
            param,
            "array_above_max_length",
        )


def _within(param: str, value: NumberT, least: float, most: float) -> NumberT:
    if value < least:
        raise invalid(
            f"Invalid '{param}': value below minimum value. Expected a value >= {least:g}, but got {value} "
            "instead.",
            param,
            "below_min_value",
        )
    if value > most:
        raise invalid(
            f"Invalid '{param}': value above maximum value. Expected a value <= {most:g}, but got {value} "
            "instead.",
            param,
            "above_max_value",
        )
    return value
