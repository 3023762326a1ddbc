"""What questions and answers are filled with, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from cluster.demo_maker.town import ASSISTANT, DAYS, PEOPLE, PLACES, SHOPS, STREETS, TOWN, Person, Place
from cluster.demo_maker.world import (
    ANIMALS,
    COLOUR_OF,
    COLOURS,
    MIXED,
    MONTHS,
    NO_PLACES,
    NO_WARES,
    OPPOSITES,
    SEASONS,
    THINGS,
    USER_NAMES,
)  # fmt: skip

Facts = dict[str, str]

LARGEST = 10
"""Of the numbers that are added."""
UNKNOWN = f"Sorry, I do not know that. I only know the town of {TOWN} and a few simple things."


def capital(sentence: str) -> str:
    """With a capital first, as sentences begin."""
    return sentence[:1].upper() + sentence[1:]


def with_article(noun: str) -> str:
    """A dog, an owl."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listed(things: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, [", ".join(things[:-1]), things[-1]]))


def plural(noun: str) -> str:
    """Two of them; none of ours is irregular but these endings."""
    if noun.endswith(("ch", "sh", "s")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def spoken_of(about: str) -> Facts:
    """What a next question may be about, given the name of a person or place."""
    for one in PEOPLE:
        if one.name == about:
            return _of_person(one)
    return next((_of_place(found) for found in PLACES if found.place == about), {})


def _of_person(found: Person) -> Facts:
    return {**found.facts, "a_pet": with_article(found.pet), "a_job": with_article(found.job)}


def _of_place(found: Place) -> Facts:
    (keeper,) = (one.name for one in PEOPLE if one.place == found.place)
    wares = {"wares": listed([plural(ware) for ware in found.prices])} if found.prices else {}
    return {**found.facts, **wares, "keeper": keeper}


def _ware(draw: Random) -> Facts:
    shop = draw.choice(SHOPS)
    ware, price = draw.choice(list(shop.prices.items()))
    cost = f"{price} coin{'' if price == '1' else 's'}"
    return {**shop.facts, "wares": plural(ware), "a_ware": with_article(ware), "cost": cost}


def _day_open(draw: Random) -> Facts:
    found = draw.choice(PLACES)
    day = found.closed if draw.random() < 0.4 else draw.choice(DAYS)
    verdict = "No, the {} is closed on {}." if day == found.closed else "Yes, the {} is open on {}."
    return {**found.facts, "day": day, "verdict": verdict.format(found.place, day)}


def _street(draw: Random) -> Facts:
    street = draw.choice([street for street in STREETS if any(one.street == street for one in PEOPLE)])
    names = [one.name for one in PEOPLE if one.street == street]
    return {"street": street, "names": listed(names), "live": "live" if len(names) > 1 else "lives"}


def _in_turn(name: str, things: Sequence[str]) -> Callable[[Random], Facts]:
    def drawn(draw: Random) -> Facts:
        index = draw.randrange(len(things))
        before, after = things[index - 1], things[(index + 1) % len(things)]
        return {"before": before, name: things[index], "after": after}

    return drawn


def _season(draw: Random) -> Facts:
    season = draw.choice(seasons := list(SEASONS))
    following = seasons[(seasons.index(season) + 1) % len(seasons)]
    return {"season": season, "weather": SEASONS[season], "next": following}


def _thing(draw: Random) -> Facts:
    thing, colour = draw.choice(list(COLOUR_OF.items()))
    return {"thing": thing, "colour": colour}


def _mixed(draw: Random) -> Facts:
    pair, colour = draw.choice(list(MIXED.items()))
    return dict(zip(("one", "other"), draw.sample(pair, 2), strict=True)) | {"colour": colour}


def _animal(draw: Random) -> Facts:
    found = draw.choice(ANIMALS)
    return {**found, "an_animal": with_article(found["animal"]), "a_young": with_article(found["young"])}


def _opposite(draw: Random) -> Facts:
    one, other = draw.sample(draw.choice(OPPOSITES), 2)
    return {"one": one, "other": other}


def _numbers(draw: Random) -> Facts:
    one, other = draw.randint(0, LARGEST), draw.randint(0, LARGEST)
    return {"one": str(one), "other": str(other), "sum": str(one + other), "next": str(one + 1)}


def _count(draw: Random) -> Facts:
    last = draw.randint(3, 20)
    return {"last": str(last), "up": ", ".join(map(str, range(1, last + 1)))}


def made_up(draw: Random) -> str:
    """A word of two or three syllables that hardly anybody has heard."""
    syllables = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 3)))
    return "".join(syllables) + draw.choice(("", "", "n", "r", "s", "l"))


def _phrase(draw: Random) -> Facts:
    """Anything, to be said again: nothing teaches to look back better."""
    words = [draw.choice(THINGS) if draw.random() < 0.5 else made_up(draw) for _ in range(draw.randint(1, 3))]
    return {"phrase": " ".join(words)}


def _name(draw: Random) -> Facts:
    return {"value": draw.choice(USER_NAMES) if draw.random() < 0.5 else capital(made_up(draw))}


def _talk(_draw: Random) -> Facts:
    people, places = listed([one.name for one in PEOPLE]), listed([one.place for one in PLACES])
    return {"town": TOWN, "assistant": ASSISTANT, "people": people, "places": places}


def _beyond(draw: Random) -> Facts:
    things = {name: _unknown(draw) for name in ("thing", "thing2", "thing3")}
    return {
        **things,
        "unknown": UNKNOWN,
        "town": TOWN,
        "stranger": _name(draw)["value"],
        "no_place": draw.choice(NO_PLACES),
        "no_ware": with_article(draw.choice(NO_WARES)),
        "day": draw.choice(DAYS),
    }


def _unknown(draw: Random) -> str:
    if draw.random() < 0.35:
        return made_up(draw)
    return " ".join(draw.choices(THINGS, k=draw.choice((1, 1, 2))))


FACTS: dict[str, Callable[[Random], Facts]] = {
    "person": lambda draw: _of_person(draw.choice(PEOPLE)),
    "place": lambda draw: _of_place(draw.choice(PLACES)),
    "shop": lambda draw: _of_place(draw.choice(SHOPS)),
    "day_open": _day_open,
    "ware": _ware,
    "street": _street,
    "day": _in_turn("day", DAYS),
    "month": _in_turn("month", MONTHS),
    "season": _season,
    "thing": _thing,
    "mixed": _mixed,
    "animal": _animal,
    "opposite": _opposite,
    "numbers": _numbers,
    "count": _count,
    "phrase": _phrase,
    "name": _name,
    "favourite": lambda draw: {"value": draw.choice(COLOURS)},
    "untold": lambda draw: {},
    "talk": _talk,
    "beyond": _beyond,
}
