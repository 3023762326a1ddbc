"""A tiny model that speaks in words, its engine, and articles in its words."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests import oracle
from tests.cluster.test_build import make
from tests.cluster.test_convert import go

SPECIAL = ("<pad>", "<s>", "</s>")
"""As the tiny models number them."""
WORDS = [
    first + second + third for first in "bdfg" for second in "aeiou" for third in ("", "n", "rt", "st", "x")
]
LIMITS = {
    "max_batch_size": 4, "max_input_len": 24, "max_seq_len": 40, "max_num_tokens": 64, "max_beam_width": 3,
    "tokens_per_block": 4,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word; texts begin with <s>."""
    words = [*SPECIAL, "TL;DR:", *WORDS[: oracle.VOCAB - 4]]
    made = Tokenizer(models.WordLevel({word: token for token, word in enumerate(words)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save_model(folder: Path) -> Path:
    """With its tokenizer, as Transformers saves them."""
    oracle.random_model(oracle.llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_engine(model: Path, folder: Path, **layout: int) -> Path:
    """In float32, of one rank or several."""
    checkpoint = folder.with_name(f"{folder.name}-checkpoint")
    go(model, checkpoint, dtype="float32", **layout)
    make(checkpoint, folder, **LIMITS)
    return folder


def save_articles(file: Path, count: int = 7) -> Path:
    """Of different lengths, some longer than a prompt may be."""
    chance = random.Random(5)
    rows = [
        {
            "article": " ".join(chance.choices(WORDS, k=chance.randint(3, 40))),
            "highlights": "\n".join(" ".join(chance.choices(WORDS, k=6)) for _ in range(2)),
        }
        for _ in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
