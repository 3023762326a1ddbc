"""Which tokens end texts and fill up arrays, as the options, the engine or the tokenizer say."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from actors.open_generator import ends_of as ends_of_engine
from builders.errors import UserError
from cluster.run_options import RunOptions

NOTHING = -1
"""What fills up arrays where no token is known to end texts."""


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Known before the engine is loaded."""

    stops: tuple[int, ...] | None
    """In place of the engine's own, which None leaves."""
    fill: int
    """What follows a text in an array."""
    pad: int | None
    """What follows a prompt in an array."""


def ends_of(options: RunOptions, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> Ends:
    """An option counts most, then what the engine was made with, then a tokenizer that was named."""
    wanted = options.end_id
    if wanted is not None and wanted >= vocab_size:
        raise UserError(f"--end_id={wanted}: the model's tokens are 0 to {vocab_size - 1}; -1 ends no text")
    of_words, pad = (tokenizer.eos_token_id, tokenizer.pad_token_id) if tokenizer else (None, None)
    words = () if of_words is None else (of_words,)
    own = ends_of_engine(options.engine_dir)
    stops = None if own else words
    if wanted is not None:
        stops = () if wanted < 0 else (wanted,)
    fill = next(iter((*(stops or ()), *words, *own)), NOTHING)
    pads = (options.pad_id, pad, None if fill == NOTHING else fill)
    return Ends(stops=stops, fill=fill, pad=next((pad for pad in pads if pad is not None), None))
