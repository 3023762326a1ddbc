"""Everything that bounds what a caller may ask of the API: each is looked at before work is done."""

from __future__ import annotations

from dataclasses import dataclass, replace

from builders.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """An engine's own limits count beside these."""

    max_body_bytes: int = 4 * 1024 * 1024
    """Of a request."""
    body_timeout_s: float = 30.0
    """A request's body takes to come."""
    read_timeout_s: float = 300.0
    """A part of an answer waits to be read, before the request ends as if its caller had left."""
    max_streams: int = 1024
    """Requests to generate that are under way at once."""
    max_waiting: int = 256
    """Of these, at one engine, prompts that have no token yet."""
    retry_after_s: int = 1
    """What a caller is told to wait when everything is full."""
    max_prompts: int = 64
    """Of one request for completions."""
    max_prompt_tokens: int | None = None
    """None is what the engine takes."""
    max_tokens: int | None = None
    """To generate for one text; None is what the engine takes."""
    max_n: int = 16
    """Texts of one prompt, those that `best_of` leaves out too."""
    max_beams: int = 16
    """Of beam search."""
    max_stops: int = 16
    """Stop strings, and as many stop tokens."""
    max_stop_chars: int = 256
    """Of one stop string."""
    max_logprobs: int = 20
    """Likeliest tokens to give with each."""
    max_logit_bias: int = 1024
    """Tokens that have one."""
    max_tools: int = 128
    """Of one request."""
    max_grammar_chars: int = 128 * 1024
    """Of a schema or a regular expression; of all tools' schemas."""
    grammar_timeout_s: float = 2.0
    """What takes longer to compile, of one processor's time, is refused."""
    max_inline_chars: int = 512
    """Texts up to this are encoded where requests are served, longer ones in a thread beside."""
    max_encoding_chars: int = 8 * 1024 * 1024
    """Of texts that wait for that thread; one that is alone there may have more."""

    def shared_by(self, processes: int) -> ApiConfig:
        """What each of several processes takes, so that all of them take no more than this: rounded up."""
        shares = {name: -(-getattr(self, name) // processes) for name in ("max_streams", "max_waiting")}
        return replace(self, **shares)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise UserError(f"{name}={value}: must be more than 0")
