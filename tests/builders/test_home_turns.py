"""Publishers, readers, pruners and pins of a shared home, who take turns at its storage in every order."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from builders.errors import ArtifactError
from builders.store import Entry, Home
from tests.builders.entries import PAYLOAD, recipe
from tests.builders.homes import build, interrupt, machine, new_home

KEY = recipe("a").key


class Turns:
    """Whose operation is next; who has none left is passed over, and in the end everybody goes on."""

    def __init__(self, order: list[int]) -> None:
        self._order, self._changed = order, threading.Condition()

    def of(self, actor: int) -> Callable[[str, str, Callable[[], Any]], Any]:
        def around(_name: str, _path: str, operation: Callable[[], Any]) -> Any:
            with self._changed:
                self._changed.wait_for(lambda: not self._order or self._order[0] == actor)
                try:
                    return operation()
                finally:
                    self._order[:1] = []
                    self._changed.notify_all()

        return around

    def end(self, actor: int) -> None:
        with self._changed:
            self._order[:] = [other for other in self._order if other != actor]
            self._changed.notify_all()


def publish(home: Home, folder: Path) -> str:
    try:
        return build(machine_of(home, folder))
    except ArtifactError as error:
        assert "again" in str(error)
        return "refused"


def find(home: Home, folder: Path) -> Entry | None:
    return machine_of(home, folder).find(KEY)


def prune(home: Home, _folder: Path) -> None:
    home.prune(0, min_age_s=0)


def pin(home: Home, _folder: Path) -> bool:
    try:
        home.pin(KEY)
    except ArtifactError:
        return False
    return True


def machine_of(home: Home, folder: Path) -> Any:
    store = machine(home, folder)
    store.home = home
    return store


def together(home: Home, acts: list[Any], order: list[int], folder: Path) -> list[Any]:
    """What becomes of each."""
    turns = Turns([actor for actor in order if actor < len(acts)])

    def run(actor: int) -> Any:
        theirs = Home(home.url.whole)
        interrupt(theirs, turns.of(actor))
        try:
            return acts[actor](theirs, folder / str(actor))
        finally:
            turns.end(actor)

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, range(len(acts))))


ORDER = st.lists(st.integers(0, 3), max_size=60)


def check(home: Home, outcomes: list[Any], acts: list[Any]) -> None:
    assert not any(home.verify().values()), "no half entry"
    for act, outcome in zip(acts, outcomes, strict=True):
        if act is find and outcome is not None:
            assert outcome.path("rank0/program.bin").read_bytes() == PAYLOAD
        if act is pin and outcome:
            assert KEY in home.known_keys(), "what is pinned stays"


@settings(max_examples=100, deadline=None)
@given(order=ORDER, acts=st.lists(st.sampled_from([publish, find]), min_size=2, max_size=4))
def test_publishers_and_readers(order: list[int], acts: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = new_home("memory", Path(folder))
        outcomes = together(home, acts, order, Path(folder))
        check(home, outcomes, acts)
        assert len(home.attempts(KEY)) == (publish in acts) and "refused" not in outcomes
        assert len({name.split("/")[2] for name in home.objects.listing("files")}) == (publish in acts)


@settings(max_examples=100, deadline=None)
@given(
    order=ORDER,
    acts=st.lists(st.sampled_from([publish, find, prune, pin]), min_size=2, max_size=4),
    is_there=st.booleans(),
)
def test_everybody(order: list[int], acts: list[Any], is_there: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = new_home("memory", Path(folder))
        if is_there:
            build(machine(home, Path(folder) / "before"))
        outcomes = together(home, acts, order, Path(folder))
        check(home, outcomes, acts)
        if "refused" not in outcomes and publish in acts and prune not in acts:
            assert KEY in home.known_keys()
        home.unpin(KEY)
        home.prune(0, min_age_s=0)
        assert not home.objects.listing("files") and build(machine(home, Path(folder) / "after"))
        assert home.verify() == {KEY: []}
