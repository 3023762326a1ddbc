"""The interpreter of the kernels' own tests."""

from tests.builders.kernels.conftest import run

__all__ = ["run"]
