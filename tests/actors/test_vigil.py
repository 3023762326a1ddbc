"""A thread that others wait for says so when it ends."""

from __future__ import annotations

from typing import cast

import pytest

from actors.vigil import Bounds, Vigil
from actors.wires import Head
from builders.errors import PeerError, WorkerError


class Broken:
    """A head whose sockets are gone."""

    def beats(self, timeout_s: float) -> None:
        raise OSError("no such socket")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_waits_end_with_the_watch() -> None:
    gone: list[str] = []
    vigil = Vigil(cast(Head, Broken()), {}, {}, Bounds(), lambda: gone.append("all"))
    with pytest.raises(WorkerError, match=r"^the ranks are watched no longer"):
        vigil.explain(PeerError("rank 0: waits"))
    vigil.close()
    with pytest.raises(WorkerError, match=r"^the ranks are watched no longer"):
        vigil.check()
    assert gone == ["all"]
