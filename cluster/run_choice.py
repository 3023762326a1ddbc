"""How `rankforge run` chooses tokens: sampling parameters from its options, and what does not go together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from actors.sampling_params import SamplingParams
from builders.errors import UserError
from cluster.prompts import readable
from cluster.run_options import RunOptions
from cluster.summarize_options import SummarizeOptions

_NEVER = float("-inf")


def check_choice(options: RunOptions) -> Sequence[str]:
    """Refuse options that do not go together; notes on those that change nothing."""
    if options.num_beams > 1:
        _check_beams(options)
    for name in ("stop_words", "bad_words"):
        for word in getattr(options, name):
            readable(f"--{name}", word)
    if options.streaming and options.json:
        raise UserError("--streaming: prints texts as they come, --json one document; give one of them")
    return idle_notes(options)


def idle_notes(options: RunOptions | SummarizeOptions) -> Sequence[str]:
    """On options that are of another way to choose than the one that is taken, as the old scripts took it."""
    if options.num_beams > 1:
        idle = _named(("top_k", *_DRAWING), options.given)
        return _note(idle, f"with --num_beams={options.num_beams}: beam search draws nothing; leave out one")
    drawing = () if "top_k" in options.given else _named((*_DRAWING, "num_return_sequences"), options.given)
    return (
        *_note(_named(_RANKING, options.given), "without --num_beams: there are no beams to rank"),
        *_note(drawing, "without --top_k: 1, the likeliest token, is taken; 0 chooses among all"),
    )


def choice_of(options: RunOptions) -> SamplingParams:
    """All but what takes a tokenizer: words that are barred, and where texts end."""
    return SamplingParams(
        max_tokens=options.max_output_len,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p or 1.0,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=options.seed,
        stop=tuple(options.stop_words),
        logprobs=0 if options.output_log_probs_npy else None,
        logits=options.output_logits_npy is not None,
        n=options.num_return_sequences or options.num_beams,
        num_beams=options.num_beams,
        length_penalty=options.length_penalty,
        early_stopping=bool(options.early_stopping),
    )


def barred(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> Mapping[int, float]:
    """A bias against each of these words."""
    if not words:
        return {}
    if tokenizer is None:
        raise UserError("--bad_words: the engine has no tokenizer; name one with --tokenizer_dir")
    tokens = [_token_of(word, tokenizer) for word in words]
    return {token: _NEVER for token in tokens if token < vocab_size}


def _token_of(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    tokens = tokenizer.encode(word, add_special_tokens=False)
    if len(tokens) != 1:
        raise UserError(
            f"--bad_words={word!r}: is {len(tokens)} tokens ({tokens}) and must be one; "
            "with a space before it, it is another word"
        )
    return int(tokens[0])


_DRAWING = ("temperature", "top_p", "min_p")
_RANKING = ("length_penalty", "early_stopping")


def _named(names: Sequence[str], given: Collection[str]) -> Sequence[str]:
    return [f"--{name}" for name in names if name in given]


def _note(idle: Sequence[str], why: str) -> Sequence[str]:
    return (f"note: {', '.join(idle)} {why}",) if idle else ()


def _check_beams(options: RunOptions) -> None:
    wanted = options.num_return_sequences
    if wanted is not None and wanted > options.num_beams:
        raise UserError(
            f"--num_return_sequences={wanted}: beam search has {options.num_beams}; use more --num_beams"
        )
    for name in ("output_logits_npy", "output_log_probs_npy"):
        if (path := getattr(options, name)) is not None:
            raise UserError(
                f"--{name}={path}: beam search has none (--num_beams={options.num_beams}); "
                "leave one of them out"
            )
