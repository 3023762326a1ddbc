"""A running Ray cluster, by its address."""

from __future__ import annotations

import re
import socket
from typing import TextIO

from actors.ray_start import signals_kept, start_ray
from builders.errors import UserError
from cluster.ray_token import Door, door, open_door
from cluster.settings import RAY_ADDRESS, ray_address, ray_speaks_tls

_ADDRESS = re.compile(r"(?P<host>[^:/\s]+|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")
LOCAL = "local"
"""A cluster of this machine, which ends with the command; there too a worker that dies is replaced."""
_WAIT_S = 5.0
"""For an answer; Ray itself would ask for minutes."""


_MISFITS = {
    Door.SHUT: "asks for a token, and this process has not got it; set RAY_AUTH_MODE=token, with the "
    "cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN",
    Door.UNLIKE: "asks for no token, and Ray runs nothing between it and a process that does; start it with "
    "RAY_AUTH_MODE=token too, or unset that here",
}
"""What Ray fails at later, with errors that say something else."""


def join(option: str | None) -> str | None:
    """Join the cluster asked for, or else the one that this process is a job of, if any; says which."""
    address = cluster_of(option)
    if address is not None:
        connect(address, named="--address" if option else RAY_ADDRESS)
    return address


def cluster_of(option: str | None) -> str | None:
    """The address of the one asked for, or else of the one that this process is a job of, if any."""
    return option or ray_address()


def connect(address: str, *, named: str = "--address") -> None:
    """Make this process a driver of the cluster, or say in one line why not."""
    if address not in ("auto", LOCAL):
        _check(address, named)
    import ray  # takes a second, which nobody else needs to wait

    if address not in ("auto", LOCAL):
        _check_door(address, named)
    try:
        if not ray.is_initialized():
            _init(address)
        silence()
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _refused(address, named, " ".join(str(error).split())) from error


def _init(address: str) -> None:
    import ray

    if address == LOCAL:
        start_ray()
        return
    with signals_kept():
        ray.init(address=address, log_to_driver=False)


def silence() -> None:
    """Ray prints nothing more in the midst of results."""
    import ray

    # Of every worker that is killed; its debugger does the same.
    ray._private.worker._worker_logs_enabled = False
    # The first error ends a job and is said in one line; Ray would print those of all other workers too.
    ray._private.worker._unhandled_error_handler = lambda e: None


def warn_of_open_door(notes: TextIO) -> None:
    """One line, where the Ray that this process uses lets in every machine."""
    if warning := open_door():
        print(warning, file=notes)


def _check(address: str, named: str) -> None:
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) >= 2**16:
        raise UserError(
            f"{named}={address}: not an address of Ray; write the head's as 10.0.0.1:6379, or auto, or local"
        )
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), _WAIT_S).close()
    except OSError as error:
        raise _refused(address, named, error.strerror or str(error)) from error


def _check_door(address: str, named: str) -> None:
    found = door(address)
    if found is Door.UNKNOWN and not ray_speaks_tls():
        raise _refused(address, named, "what listens there is another program, or takes TLS")
    if what := _MISFITS.get(found):
        raise UserError(f"{named}={address}: the cluster {what}")


def _refused(address: str, named: str, why: str) -> UserError:
    return UserError(
        f"{named}={address}: no Ray cluster answers ({why}); start one with `ray start --head`, or leave "
        f"{'the option out' if named.startswith('--') else 'it unset'}"
    )
