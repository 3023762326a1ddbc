"""What executes kernels in tests: Triton's interpreter, and the device where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from builders.kernels.call import Runner

pytest.importorskip("triton", reason="triton is not installed")

from tests.builders.kernels.workers import interpret, pool
from tests.builders.kernels.workers import launch as launched

TOLERANCE = {
    torch.float8_e4m3fn: 4e-2,
    torch.bfloat16: 1.5e-2,
    torch.float16: 2e-3,
    torch.float32: 1e-5,
}
"""Of the largest value."""

RUNNERS = [
    "interpreted",
    *([pytest.param("launched", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []),
]


@pytest.fixture(scope="session", params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Executes launches on CPU tensors."""
    interpreted = request.param == "interpreted"
    with pool(interpreted=interpreted) as workers:
        execute = interpret if interpreted else launched
        yield lambda calls: execute(workers, calls)


@pytest.fixture(scope="session")
def launch() -> Iterator[Runner]:
    """Executes launches on CPU tensors, for kernels that cannot be interpreted."""
    with pool(interpreted=False) as workers:
        yield lambda calls: launched(workers, calls)


@pytest.fixture(scope="session")
def assert_near() -> Callable[[Tensor, Tensor], None]:
    """Compares with what was computed in float32."""
    return near


def near(out: Tensor, expected: Tensor) -> None:
    limit = TOLERANCE[out.dtype] * max(1.0, expected.float().abs().max().item())
    torch.testing.assert_close(out.float(), expected.float(), rtol=0, atol=limit)
