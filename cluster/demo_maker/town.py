"""Quillby, the little town that the demo's model knows: it exists nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, fields

TOWN = "Quillby"
ASSISTANT = "Pip"


@dataclass(frozen=True, kw_only=True)
class Person:
    """One of the people of the town."""

    name: str
    they: str
    """The pronoun: he or she."""
    job: str
    place: str
    """Where they work, which nobody else does."""
    street: str
    pet: str
    pet_name: str
    food: str
    """What they like to eat best."""
    age: str

    @property
    def facts(self) -> dict[str, str]:
        """What sentences about them are made of."""
        own = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        them, their = _PRONOUNS[self.they]
        return {**own, "They": self.they.capitalize(), "them": them, "their": their}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where somebody works, and what there is to buy."""

    place: str
    where: str
    """The street."""
    closed: str
    """The day of the week on which it is closed."""
    hour: str
    """When it opens."""
    prices: dict[str, str]
    """In coins, of everything that it sells."""

    @property
    def facts(self) -> dict[str, str]:
        """What sentences about it are made of."""
        return {"place": self.place, "where": self.where, "closed": self.closed, "hour": self.hour}


_PRONOUNS = {"he": ("him", "his"), "she": ("her", "her")}

_PEOPLE = """
Anna  she baker      bakery      Mill-Street   cat     Plum     soup     41
Ben   he  bookseller bookshop    Hill-Road     owl     Dusty    cheese   67
Cora  she florist    flower-shop Rose-Lane     rabbit  Clover   pancakes 33
Dan   he  toymaker   toy-shop    Pond-Lane     dog     Biscuit  pie      52
Ella  she cook       tea-house   Mill-Street   parrot  Captain  noodles  29
Finn  he  grocer     grocery     Market-Square pig     Button   apples   45
Greta she smith      smithy      Forge-Street  horse   Thunder  stew     38
Hugo  he  teacher    school      Church-Road   mouse   Pepper   honey    60
Iris  she doctor     clinic      Hill-Road     cat     Moon     salad    47
Jack  he  farmer     farm        Meadow-Lane   goat    Daisy    bread    55
Kate  she librarian  library     Church-Road   snail   Rocket   rice     36
Leo   he  postman    post-office Market-Square dog     Arrow    potatoes 24
"""

_PLACES = """
bakery      Mill-Street   Monday    6  bun:1 cake:8 pie:5
bookshop    Hill-Road     Tuesday   10 book:7 map:4 diary:6
flower-shop Rose-Lane     Wednesday 8  rose:3 tulip:2 wreath:9
toy-shop    Pond-Lane     Thursday  11 doll:6 kite:5 ball:2
tea-house   Mill-Street   Friday    9  biscuit:1 sandwich:4 pudding:3
grocery     Market-Square Sunday    7  melon:4 cabbage:2 lemon:1
smithy      Forge-Street  Saturday  8  nail:1 hammer:9 lantern:7
school      Church-Road   Sunday    8
clinic      Hill-Road     Sunday    9
farm        Meadow-Lane   Saturday  5  pumpkin:3 turnip:1 cheese:6
library     Church-Road   Monday    10
post-office Market-Square Sunday    8  stamp:1 postcard:2 parcel:5
"""


def _words(line: str) -> list[str]:
    return [word.replace("-", " ") for word in line.split()]


def _people() -> tuple[Person, ...]:
    names = "name they job place street pet pet_name food age".split()
    rows = (_words(line) for line in _PEOPLE.strip().splitlines())
    return tuple(Person(**dict(zip(names, row, strict=True))) for row in rows)


def _place(line: str) -> Place:
    place, where, closed, hour, *wares = _words(line)
    prices = dict(ware.split(":") for ware in wares)
    return Place(place=place, where=where, closed=closed, hour=hour, prices=prices)


PEOPLE = _people()
PLACES = tuple(_place(line) for line in _PLACES.strip().splitlines())
SHOPS = tuple(place for place in PLACES if place.prices)
STREETS = tuple(sorted({place.where for place in PLACES}))
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
