"""A running Ray cluster, by its address."""

from __future__ import annotations

import re
import socket

from builders.errors import UserError

_ADDRESS = re.compile(r"(?P<host>[^:/\s]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")
_WAIT_S = 5.0
"""For an answer; Ray itself would ask for minutes."""


def connect(address: str) -> None:
    """Make this process a driver of the cluster, or say in one line why not."""
    if address != "auto":
        _check(address)
    import ray  # takes a second, which nobody else needs to wait

    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _refused(address, " ".join(str(error).split())) from error


def _check(address: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) >= 2**16:
        raise UserError(
            f"--address={address}: not an address of Ray; write the head node's as 10.0.0.1:6379, or auto"
        )
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _WAIT_S).close()
    except OSError as error:
        raise _refused(address, error.strerror or str(error)) from error


def _refused(address: str, why: str) -> UserError:
    return UserError(
        f"--address={address}: no Ray cluster answers ({why}); start one with `ray start --head`, or leave "
        "the option out"
    )
