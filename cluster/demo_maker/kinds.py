"""Kinds of questions, as `questions.txt` lists them: wordings and an answer, which facts fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random

from cluster.demo_maker.facts import Facts, capital

_FILE = Path(__file__).with_name("questions.txt")
_FRAMES = (
    "Tell me {}.",
    "Can you tell me {}?",
    "Do you know {}?",
    "Please tell me {}.",
    "I want to know {}.",
)
_UNHEARD_FRAMES = (
    "Could you tell me {}?",
    "I would like to know {}.",
    "Let me know {}.",
    "Have you any idea {}?",
)


class Wording(Enum):
    """Which of a kind's wordings."""

    HEARD = ""
    """Those that training asks in."""
    LATER = ">"
    """For when what it is about was just spoken of."""
    UNHEARD = "!"
    """Never in training: the exam's."""
    UNHEARD_LATER = "!>"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A question and its one right answer."""

    kind: str
    question: str
    answer: str
    about: str = ""
    """The person or place that a next question may call by a pronoun."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Questions that differ in wording and facts alone."""

    name: str
    facts: str
    """What fills them: a name in `FACTS`."""
    about: str
    """Which of the facts the next question may be about; empty for none."""
    answer: str
    wordings: dict[Wording, list[str]] = field(default_factory=lambda: {which: [] for which in Wording})

    def ask(self, draw: Random, facts: Facts, which: Wording = Wording.HEARD) -> Exchange:
        """With these facts."""
        question = draw.choice(self.wordings[which]).format(**facts)
        answer = capital(self.answer.format(**facts))
        about = facts.get(self.about, "")
        return Exchange(kind=self.name, question=capital(question), answer=answer, about=about)


def read_kinds(text: str) -> Sequence[Kind]:
    """All that a file lists."""
    found: list[Kind] = []
    facts = about = ""
    for line in filter(None, text.splitlines()):
        if line.startswith("=="):
            facts, about = (*line.split()[1:], "")[:2]
        elif line.startswith("  "):
            _add(found[-1], line.strip())
        elif not line.startswith("#"):
            name, answer = line.split(" = ")
            found.append(Kind(name=name, facts=facts, about=about, answer=answer))
    return found


def _add(kind: Kind, line: str) -> None:
    """A line of wordings, after a mark that says which."""
    mark, _, rest = line.partition(" ") if line[0] in "~>!" else ("", "", line)
    which, wordings = Wording(mark.replace("~", "")), rest.split(" | ")
    if "~" in mark:
        kind.wordings[Wording.HEARD] += [one.format(each) for each in wordings for one in _FRAMES]
        kind.wordings[Wording.UNHEARD] += [one.format(each) for each in wordings for one in _UNHEARD_FRAMES]
    else:
        kind.wordings[which] += wordings


KINDS = read_kinds(_FILE.read_text())
