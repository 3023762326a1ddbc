"""Models with what Transformers makes of them, which takes longer than to run them here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.actors.subjects import Subject
    from tests.cuda_engines import CudaEngines


@pytest.fixture(scope="session")
def subjects(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Subject]]:
    from tests.actors.subjects import Subject  # Transformers is not for every test

    ahead = request.config.getoption("--engines")

    def subject(name: str) -> Subject:
        saved = ahead / name if ahead else None
        if saved and saved.is_dir():
            return Subject.saved_before(saved)
        return Subject.of(name, tmp_path_factory.mktemp(name))

    yield cache(subject)


@pytest.fixture(scope="session")
def cuda_engines(
    request: pytest.FixtureRequest,
    subjects: Callable[[str], Subject],
    tmp_path_factory: pytest.TempPathFactory,
) -> CudaEngines:
    from tests.cuda_engines import CudaEngines

    ahead = request.config.getoption("--engines")
    return CudaEngines(ahead=ahead, scratch=tmp_path_factory.mktemp("engines"), subjects=subjects)
