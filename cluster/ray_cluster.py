"""A running Ray cluster, by its address."""

from __future__ import annotations

import re
import signal
import socket
import threading

from builders.errors import UserError
from cluster.settings import ray_address

_ADDRESS = re.compile(r"(?P<host>[^:/\s]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")
_WAIT_S = 5.0
"""For an answer; Ray itself would ask for minutes."""


def join(option: str | None) -> str | None:
    """Join the cluster asked for, or else the one that this process is a job of, if any; says which."""
    address = cluster_of(option)
    if address is not None:
        connect(address)
    return address


def cluster_of(option: str | None) -> str | None:
    """The address of the one asked for, or else of the one that this process is a job of, if any."""
    return option or ray_address()


def connect(address: str) -> None:
    """Make this process a driver of the cluster, or say in one line why not."""
    if address != "auto":
        _check(address)
    import ray  # takes a second, which nobody else needs to wait

    heard = signal.getsignal(signal.SIGTERM)
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        # Or Ray prints of every worker that is killed, in the midst of results; its debugger does the same.
        ray._private.worker._worker_logs_enabled = False
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _refused(address, " ".join(str(error).split())) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heard)  # Ray has put one of its own in its place


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
