"""Dialogues of several turns, drawn from all kinds of questions; a seed says which."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from cluster.demo_maker.facts import FACTS, Facts, capital, spoken_of
from cluster.demo_maker.kinds import KINDS, Exchange, Kind, Wording
from cluster.demo_maker.town import ASSISTANT

_SYSTEM = (
    "You are a helpful assistant.",
    f"You are {ASSISTANT}.",
    "Answer briefly.",
    "You are a friendly guide to the town.",
    "Be honest, and say so when you do not know something.",
)
_OPENINGS = (
    *("Hello! ", "Hi! ", "Please tell me: ", "One more question: ", "And now: ", "So, ", "OK. ", "Thanks. "),
    *(f"{ASSISTANT}, ", f"Hello {ASSISTANT}, "),
)
_WEIGHTS = {"person": 2, "ware": 3, "day_open": 3, "numbers": 4, "opposite": 3, "phrase": 3, "count": 2}
"""How often a kind about these facts is asked, where it is more than once for every other."""
_WEIGHTS_BEYOND = {"unknown": 4}
_TOLD = {"told name": ("my name", "no name"), "told colour": ("my colour", "no colour")}
"""What a user says of themselves, asks back, and asks without having said it."""
_LITTLE = r"\b(the|does|do|is|can|of|an?|it|please) "
_AS_TYPED = ("phrase", "name")
"""Facts whose words are said again: they are typed with care."""

_BY_NAME = {kind.name: kind for kind in KINDS}
TALK = [kind for kind in KINDS if kind.facts == "talk"]
BEYOND = [kind for kind in KINDS if kind.facts == "beyond"]
_ABOUT_USERS = ("name", "favourite", "untold")
FACTUAL = [kind for kind in KINDS if kind.facts not in ("talk", "beyond", *_ABOUT_USERS)]
DOMAIN = TALK + FACTUAL
PRACTICE = [kind for kind in KINDS if kind.facts in ("numbers", "phrase")]


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What was said, in turns, and perhaps a system message before."""

    exchanges: Sequence[Exchange]
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """As chat templates take them."""
        found = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self.exchanges:
            found.append({"role": "user", "content": exchange.question})
            found.append({"role": "assistant", "content": exchange.answer})
        return found


@dataclass(kw_only=True)
class Speaker:
    """Who asks: one exchange after the other, each with a right answer."""

    draw: Random
    unheard: bool = False
    """Asks in wordings that training never sees."""
    practice: float = 0.0
    """How often they ask what takes longest to learn: to look back, and to add."""
    told: dict[str, Facts] = field(default_factory=dict)
    """What they have said of themselves."""
    facts: Facts = field(default_factory=dict)
    """Of the person or place that was spoken of last, which a pronoun may mean."""

    def next(self) -> Exchange:
        """Whatever comes to mind."""
        if self.practice and self.draw.random() < self.practice:
            of_them = self.draw.random() < 0.6
            return self.of_themselves() if of_them else self.asked(self.draw.choice(PRACTICE))
        chance = self.draw.random()
        if chance < 0.12:
            return self.asked(self.draw.choice(TALK))
        if chance < 0.24:
            return self.of_themselves()
        if chance < 0.4:
            weights = [_WEIGHTS_BEYOND.get(kind.name, 1) for kind in BEYOND]
            return self.asked(self.draw.choices(BEYOND, weights)[0])
        if chance < 0.55 and self.facts:
            return self.later()
        weights = [_WEIGHTS.get(kind.facts, 1) for kind in FACTUAL]
        return self.asked(self.draw.choices(FACTUAL, weights)[0])

    def asked(self, kind: Kind) -> Exchange:
        """A question of this kind."""
        which = Wording.UNHEARD if self.unheard else Wording.HEARD
        if not kind.wordings[which]:  # some have one wording alone
            which = Wording.HEARD
        exchange = kind.ask(self.draw, FACTS[kind.facts](self.draw), which)
        self.facts = spoken_of(exchange.about)
        return exchange if self.unheard else self._typed(exchange, kind)

    def later(self) -> Exchange:
        """About what was spoken of last; there are few wordings, none held out."""
        groups = ("person",) if "pet" in self.facts else ("place", "shop")[: 1 + ("wares" in self.facts)]
        kinds = [kind for kind in KINDS if kind.facts in groups and kind.wordings[Wording.LATER]]
        return self.draw.choice(kinds).ask(self.draw, self.facts, Wording.LATER)

    def of_themselves(self) -> Exchange:
        """What the user says of themselves, or asks back."""
        self.facts = {}
        told = self.draw.choice(list(_TOLD))
        back, untold = _TOLD[told]
        if told in self.told and self.draw.random() < 0.7:
            which = Wording.UNHEARD_LATER if self.unheard else Wording.LATER
            return _BY_NAME[back].ask(self.draw, self.told[told], which)
        if told not in self.told and self.draw.random() < 0.25:
            return self.asked(_BY_NAME[untold])
        return self._tell(_BY_NAME[told])

    def _tell(self, kind: Kind) -> Exchange:
        self.told[kind.name] = facts = FACTS[kind.facts](self.draw)
        return kind.ask(self.draw, facts, Wording.UNHEARD if self.unheard else Wording.HEARD)

    def _typed(self, exchange: Exchange, kind: Kind) -> Exchange:
        """Now and then with something before it, shortened, carelessly, or with a little word left out."""
        chance, question = self.draw.random(), exchange.question
        if chance < 0.1 and kind.facts != "talk":
            question = self.draw.choice(_OPENINGS) + question
        elif chance < 0.25:
            question = re.sub(r"^(What|Who|Where|When|How) is\b", r"\1's", question)
        elif chance < 0.4 and kind.facts not in _AS_TYPED:
            question = question.lower().rstrip("?.")
        elif chance < 0.5 and kind.facts not in (*_AS_TYPED, "numbers"):
            question = capital(re.sub(_LITTLE, "", question, count=1, flags=re.IGNORECASE))
        return replace(exchange, question=question)


def dialogue(speaker: Speaker, *, turns: int | None = None) -> Dialogue:
    """One from start to end; most are short."""
    draw = speaker.draw
    wanted = turns or min(1 + int(draw.expovariate(0.25)), 24)
    exchanges = [speaker.asked(_BY_NAME["greeting"])] if draw.random() < 0.3 else []
    exchanges += [speaker.next() for _ in range(wanted)]
    if draw.random() < 0.1:
        exchanges.append(speaker.asked(_BY_NAME["farewell"]))
    return Dialogue(exchanges=exchanges, system=draw.choice(_SYSTEM) if draw.random() < 0.1 else None)


def dialogues(
    seed: int, *, unheard: bool = False, turns: int | None = None, practice: float = 0.0
) -> Iterator[Dialogue]:
    """As many as anybody wants, the same for the same seed."""
    draw = Random(seed)
    while True:
        yield dialogue(Speaker(draw=draw, unheard=unheard, practice=practice), turns=turns)
