"""What the demo's model gets right, in wordings kept from its training above all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cluster.demo_maker.dialogues import BEYOND, Dialogue, Speaker, dialogues
from cluster.demo_maker.facts import FACTS
from cluster.demo_maker.kinds import Exchange, Kind, Wording

_NEW_TOKENS = 96
_BATCH = 64
_DECLINED = {kind.answer.format(**FACTS[kind.facts](Random(0))) for kind in BEYOND}


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How many answers were right, to the letter, and where there were mistakes.

    What it cannot know may be declined in any of the ways that it has been taught.
    """

    asked: int
    right: int
    ended: int
    """Answers that the model ended by itself."""
    wrong: Sequence[tuple[Exchange, str]]

    @property
    def percent(self) -> float:
        """Right ones of a hundred."""
        return 100 * self.right / self.asked

    @property
    def wrong_by_kind(self) -> Counter[str]:
        """How many mistakes of every kind."""
        return Counter(exchange.kind for exchange, _ in self.wrong)


Messages = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A model and its words."""

    model: Any
    """Of Transformers: it generates."""
    tokenizer: PreTrainedTokenizerBase

    def answers(self, dialogues: Sequence[Messages]) -> list[tuple[str, bool]]:
        """What it says next, greedily, and whether it ended by itself."""
        batches = (dialogues[start : start + _BATCH] for start in range(0, len(dialogues), _BATCH))
        return [answer for batch in batches for answer in self._batch(batch)]

    @torch.no_grad()
    def _batch(self, dialogues: Sequence[Messages]) -> list[tuple[str, bool]]:
        """Filled up before their beginnings, as they are gone on with at their ends."""
        asked = [self.prompt(messages) for messages in dialogues]
        longest, end = max(map(len, asked)), self.tokenizer.eos_token_id
        ids = torch.tensor([[end] * (longest - len(one)) + one for one in asked])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in asked])
        said = self.model.generate(ids, attention_mask=mask, max_new_tokens=_NEW_TOKENS, do_sample=False)
        return [self._text(row[longest:].tolist()) for row in said]

    def prompt(self, messages: Messages) -> list[int]:
        """As the chat template has it, up to where the answer begins."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self.tokenizer.encode(str(text), add_special_tokens=False)

    def _text(self, ids: list[int]) -> tuple[str, bool]:
        ended = self.tokenizer.eos_token_id in ids
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)), ended


def single_questions(seed: int, count: int, kinds: Sequence[Kind], *, unheard: bool) -> list[Exchange]:
    """Different questions, as many of every kind as there are."""
    speaker = Speaker(draw=Random(seed), unheard=unheard)
    wanted = [kind for kind in kinds if kind.wordings[Wording.UNHEARD]]
    found: dict[str, Exchange] = {}
    for turn in range(count * 4):
        exchange = speaker.asked(wanted[turn % len(wanted)])
        if len(found) < count:
            found.setdefault(exchange.question, exchange)
    return list(found.values())


def examine(pupil: Pupil, exchanges: Sequence[Exchange]) -> Marks:
    """Every question in a dialogue of its own."""
    asked = [[{"role": "user", "content": exchange.question}] for exchange in exchanges]
    return _marks(list(zip(exchanges, pupil.answers(asked), strict=True)))


def converse(pupil: Pupil, seed: int, count: int, turns: int) -> Marks:
    """Whole dialogues in wordings that training never saw; it reads its own answers to those before."""
    held = list(islice(dialogues(seed, unheard=True, turns=turns), count))
    said: list[Messages] = [[] for _ in held]
    marked: list[tuple[Exchange, tuple[str, bool]]] = []
    for turn in range(max(len(one.exchanges) for one in held)):
        going = [
            (one, messages) for one, messages in zip(held, said, strict=True) if turn < len(one.exchanges)
        ]
        for one, messages in going:
            messages.append({"role": "user", "content": one.exchanges[turn].question})
        answers = pupil.answers([_with_system(one, messages) for one, messages in going])
        for (one, messages), answer in zip(going, answers, strict=True):
            messages.append({"role": "assistant", "content": answer[0]})
            marked.append((one.exchanges[turn], answer))
    return _marks(marked)


def _with_system(dialogue: Dialogue, messages: Messages) -> Messages:
    return [{"role": "system", "content": dialogue.system}, *messages] if dialogue.system else messages


def _marks(marked: Sequence[tuple[Exchange, tuple[str, bool]]]) -> Marks:
    wrong = [(exchange, said) for exchange, (said, _) in marked if not _right(exchange, said)]
    return Marks(
        asked=len(marked),
        right=len(marked) - len(wrong),
        ended=sum(ended for _, (_, ended) in marked),
        wrong=wrong,
    )


def _right(exchange: Exchange, said: str) -> bool:
    return said == exchange.answer or {said, exchange.answer} <= _DECLINED
