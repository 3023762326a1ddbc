"""The options of `rankforge run`, under the names that users of the old script know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import given, option

_INPUT, _CHOICE, _BEAMS, _OUTPUT, _RUNTIME = "Input", "Choice of tokens", "Beam search", "Output", "Runtime"

SENTENCE = "Born in north-east France, Soyer trained as a"
"""What the old script went on with unasked."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What to generate from, how, and where to put it."""

    engine_dir: Path = option(help="An engine that `rankforge build` made.", group=_INPUT)
    input_text: list[str] = option(
        [SENTENCE],
        help="Texts to go on with, one or several; the old script's sentence by default.",
        group=_INPUT,
    )
    input_file: Path | None = option(
        None,
        help="Prompts in a file instead: a line each; or token ids in .csv, a row each, or in .npy, one row "
        "or several that are filled up at their ends.",
        group=_INPUT,
    )
    tokenizer_dir: Path | None = option(
        None, help="A folder with the tokenizer; the engine's own by default.", group=_INPUT
    )
    no_add_special_tokens: bool = option(
        False, help="Encode texts without a token that begins or ends them.", group=_INPUT
    )
    max_input_length: int | None = option(
        None, help="Of longer prompts take so many tokens, the last; all by default.", group=_INPUT, least=1
    )
    pad_id: int | None = option(
        None, help="What fills up rows of .npy; the tokenizer's by default, else the end.", group=_INPUT
    )
    max_output_len: int = option(help="Tokens to generate at most.", group=_CHOICE, least=1)
    end_id: int | None = option(
        None,
        help="The token that ends a text, -1 for none; the model's own by default.",
        group=_CHOICE,
        least=-1,
    )
    num_return_sequences: int | None = option(
        None,
        help="Texts for every prompt; one by default, with beam search every beam.",
        group=_CHOICE,
        least=1,
    )
    top_k: int = option(
        1,
        help="Choose among so many of the likeliest: 1 takes the likeliest, 0 is all.",
        group=_CHOICE,
        least=0,
    )
    top_p: float = option(
        0.0,
        help="Choose among the likeliest whose probabilities add up to this; 0 and 1 are all.",
        group=_CHOICE,
        least=0,
        most=1,
    )
    min_p: float = option(
        0.0,
        help="Choose among tokens at least this likely, as a part of the likeliest.",
        group=_CHOICE,
        least=0,
        most=1,
    )
    temperature: float = option(
        1.0, help="How evenly to choose; 0 takes the likeliest.", group=_CHOICE, least=0, most=100
    )
    seed: int = option(0, help="The same one gives the same texts.", group=_CHOICE, also="random_seed")
    repetition_penalty: float = option(
        1.0,
        help="Makes tokens of the prompt and the text less likely: over 1.",
        group=_CHOICE,
        least=1e-3,
        most=100,
    )
    presence_penalty: float = option(
        0.0, help="Taken from the score of tokens that the text has.", group=_CHOICE, least=-2, most=2
    )
    frequency_penalty: float = option(
        0.0, help="Taken from it for every time that the text has them.", group=_CHOICE, least=-2, most=2
    )
    stop_words: list[str] = option(
        [], help="Texts that end every text, and are not part of it.", group=_CHOICE
    )
    bad_words: list[str] = option(
        [], help="Words that are never generated, of one token each.", group=_CHOICE
    )
    num_beams: int = option(1, help="Search with so many beams, instead of choosing.", group=_BEAMS, least=1)
    length_penalty: float = option(
        1.0,
        help="Beams are ranked by their score over their length to this power.",
        group=_BEAMS,
        least=-100,
        most=100,
    )
    early_stopping: int = option(
        1,
        help="1 ends the search once there are as many texts as beams, 0 when none can get better.",
        group=_BEAMS,
        least=0,
        most=1,
    )
    streaming: bool = option(False, help="Print texts as they come.", group=_OUTPUT)
    streaming_interval: int = option(
        5, help="Tokens that are printed at once while texts come.", group=_OUTPUT, least=1
    )
    output_csv: Path | None = option(
        None, help="File for the generated tokens: a row for every text.", group=_OUTPUT
    )
    output_npy: Path | None = option(
        None, help="The same as int32 (prompts, texts, tokens), filled up with the end.", group=_OUTPUT
    )
    output_json: Path | None = option(
        None, help="File for prompts, texts, tokens, ends and scores, as one JSON document.", group=_OUTPUT
    )
    output_logits_npy: Path | None = option(
        None,
        help="File for what tokens were chosen by, as float32 (prompts, texts, tokens, vocabulary).",
        group=_OUTPUT,
    )
    output_log_probs_npy: Path | None = option(
        None,
        help="File for the tokens' log-probabilities, as float32 (prompts, texts, tokens).",
        group=_OUTPUT,
    )
    json: bool = option(False, help="Print the result as JSON.", group=_OUTPUT)
    kv_cache_free_gpu_memory_fraction: float = option(
        0.9,
        help="How much of the free memory of every GPU is for the cache.",
        group=_RUNTIME,
        least=0.01,
        most=1,
    )
    max_tokens_in_paged_kv_cache: int | None = option(
        None, help="Tokens that the cache holds, whatever the memory.", group=_RUNTIME, least=1
    )
    max_attention_window_size: int | None = option(
        None,
        help="How far back attention sees, as the engine was built: its kernels know no other.",
        group=_RUNTIME,
        least=1,
    )
    prompt_lookup_num_tokens: int = option(
        0,
        help="Guess so many tokens at once from what the text has already; greedy texts stay the same.",
        group=_RUNTIME,
        least=0,
    )
    address: str | None = option(
        None,
        help="A running Ray cluster for the ranks; by default one of this machine is started.",
        group=_RUNTIME,
    )
    given: frozenset[str] = given()
