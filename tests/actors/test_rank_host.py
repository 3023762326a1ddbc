"""What a rank's actor makes of what Ray tells it."""

from __future__ import annotations

import pytest

from actors.rank_host import device_named


@pytest.mark.parametrize(
    ("held", "visible", "device"),
    [
        ("0", None, "cuda:0"),
        ("3", None, "cuda:3"),
        ("3", "", "cuda:3"),
        ("5", "4,5", "cuda:1"),
        ("0", "1,0", "cuda:1"),
        ("GPU-b", "GPU-a,GPU-b", "cuda:1"),
    ],
)
def test_hidden_devices_are_not_counted(held: str, visible: str | None, device: str) -> None:
    assert device_named(held, visible) == device
