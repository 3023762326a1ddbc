"""Where a service is to be reached: free, or Ray Serve's already."""

from __future__ import annotations

import socket

from ray.serve.config import HTTPOptions

from builders.errors import UserError
from cluster.serve_plan import Service


def free_port() -> int:
    """Of this machine's loopback address, as long as nobody else takes it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_free(service: Service) -> None:
    """Refuse an address that is taken, or is none of this machine's."""
    http = service.schema["http_options"]
    host, port = http["host"], http["port"]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:  # the second: of a name that none can have
            why = error.strerror if isinstance(error, OSError) else error
            raise UserError(_TAKEN.format(host=host, port=port, why=why)) from error


_TAKEN = "--port={port}: cannot serve at {host} ({why}); choose another --port, or a --host of this machine"


def check_same(service: Service, running: HTTPOptions) -> None:
    """A Serve that runs keeps the address that it was started with."""
    http = service.schema["http_options"]
    wanted, found = (http["host"], http["port"]), (running.host, running.port)
    if wanted != found:
        raise UserError(
            f"--host={wanted[0]} --port={wanted[1]}: Ray Serve runs on this cluster already, at "
            f"--host={found[0]} --port={found[1]}; use these, or end it with `serve shutdown`"
        )
