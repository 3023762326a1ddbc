"""The demo model's tokenizer: byte-level BPE, learnt from the dialogues, with a chat template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cluster.demo_maker.dialogues import Dialogue

BEGIN, USER, ASSISTANT, END = SPECIAL = ("<|begin|>", "<|user|>", "<|assistant|>", "<|end|>")

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'system' and loop.first %}{{- message.content | trim }}"
    "{%- elif message.role == 'user' %}{{- '<|user|>' + message.content | trim + '<|end|>' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|assistant|>' + message.content | trim + '<|end|>' }}"
    "{%- else %}{{- raise_exception('Messages are of user and assistant; the first may be of system.') }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

OTHER_WEIGHT = 0.1
"""Of tokens that the model does not say but reads: so that it can go on with any text, if not as well."""


@dataclass(frozen=True, kw_only=True)
class Sequenced:
    """A dialogue as tokens, with how much each counts as something to predict."""

    ids: Sequence[int]
    weights: Sequence[float]


def learn_tokenizer(dialogues: Iterable[Dialogue], vocab_size: int, longest: int) -> PreTrainedTokenizerFast:
    """The same for the same dialogues."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (message["content"] for dialogue in dialogues for message in dialogue.messages)
    tokenizer.train_from_iterator(texts, trainer)
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )


def sequenced(tokenizer: PreTrainedTokenizerFast, dialogue: Dialogue) -> Sequenced:
    """What the chat template makes of it; answers and their ends count in full."""
    begin, user, assistant, end = (int(tokenizer.vocab[name]) for name in SPECIAL)
    ids = [begin, *_encoded(tokenizer, dialogue.system or "")]
    weights = [OTHER_WEIGHT] * len(ids)
    for exchange in dialogue.exchanges:
        asked = [user, *_encoded(tokenizer, exchange.question), end, assistant]
        said = [*_encoded(tokenizer, exchange.answer), end]
        ids += asked + said
        weights += [OTHER_WEIGHT] * len(asked) + [1.0] * len(said)
    return Sequenced(ids=ids, weights=weights)


@lru_cache(maxsize=100_000)
def _encoded(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Most sentences come again."""
    return tokenizer.encode(text, add_special_tokens=False)
