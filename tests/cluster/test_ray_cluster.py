"""Addresses at which no Ray is."""

from __future__ import annotations

import socket

import pytest

from builders.errors import UserError
from cluster.ray_cluster import connect


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "host:", ":6379", "host:70000", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match=f"^--address={address}: not an address of Ray; write"):
        connect(address)


def test_an_address_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^--address={address}: no Ray cluster answers \(.*refused\)"):
            connect(address)
