"""What is left of what Serve says of a replica that does not start."""

from __future__ import annotations

import pytest

from builders.errors import UserError, WorkerError
from cluster.serve_cause import raised_in

TRACE = """A replica failed to start with exception. Retrying. Error:
Traceback (most recent call last):
  File "replica.py", line 1, in __init__
builders.errors.{kind}: {words}
"""


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (TRACE.format(kind="ArtifactError", words="a: b: cut short"), UserError, "a: b: cut short"),
        (TRACE.format(kind="WorkerError", words="rank 1 died"), WorkerError, "rank 1 died"),
        ("x\nRuntimeError: CUDA: none\n", WorkerError, "RuntimeError: CUDA: none"),
        ("has taken\n  30s to be scheduled \n", WorkerError, "30s to be scheduled"),
        ("", WorkerError, "no more is known"),
    ],
)
def test_what_was_raised(said: str, kind: type[Exception], words: str) -> None:
    error = raised_in(said)
    assert type(error) is kind and str(error) == words
