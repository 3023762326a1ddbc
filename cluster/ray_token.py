"""Whether a Ray cluster asks for a token, and whether this process has it: by asking the cluster itself.

Ray's own client repeats a refused call for 20 seconds and then speaks of a connection, and it never says that
a cluster lets everybody in.
"""

from __future__ import annotations

import ipaddress
import sys
from enum import Enum, auto

_WAIT_S = 20.0
"""A cluster that has much to do may take its time; what is no cluster mostly says so at once."""
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""The smallest question; an empty message asks it of nobody in particular."""


class Door(Enum):
    """What a cluster does with a caller."""

    OPEN = auto()
    """It lets everybody in."""
    OURS = auto()
    """It asks for a token, which this process has."""
    SHUT = auto()
    """It asks for a token, which this process has not."""
    UNLIKE = auto()
    """It asks for none, but this process does, and will not hear what the cluster tells it."""
    UNKNOWN = auto()
    """It does not say: behind TLS, or no Ray at all."""


def door(address: str) -> Door:
    """Of the cluster with its head at `host:port`."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    without, header = _lets_in(address, {}), get_auth_headers_if_auth_enabled({})
    if without is None:
        return Door.UNKNOWN
    if without:
        return Door.UNLIKE if header else Door.OPEN
    return Door.OURS if header and _lets_in(address, header) else Door.SHUT


def open_door() -> str | None:
    """A warning where the cluster that this process has joined or started takes orders from any machine."""
    ray = sys.modules.get("ray")  # whoever has not imported it uses none, and need not wait for it
    if ray is None or not ray.is_initialized():
        return None
    address = ray.get_runtime_context().gcs_address
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if all(_is_loopback(host) for host in hosts) or door(address) is not Door.OPEN:
        return None
    return (
        f"warning: the Ray cluster at {address} asks for no token: whoever reaches it can run "
        "code as you; start it with RAY_AUTH_MODE=token (docs/cluster.md)"
    )


def _lets_in(address: str, header: dict[str, str]) -> bool | None:
    """None where it gives no answer that says so."""
    import grpc  # with Ray

    metadata = [(name.lower(), value) for name, value in header.items()]
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_CHECK_ALIVE)(b"", timeout=_WAIT_S, metadata=metadata)
        except grpc.RpcError as error:
            return False if error.code() is grpc.StatusCode.UNAUTHENTICATED else None
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
