"""Models with what Transformers makes of them, which takes longer than to run them here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.actors.subjects import Subject


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Subject]]:
    from tests.actors.subjects import Subject  # Transformers is not for every test

    yield cache(lambda name: Subject.of(name, tmp_path_factory.mktemp(name)))
