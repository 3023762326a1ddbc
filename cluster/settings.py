"""What is read of the environment: all of it is read here."""

from __future__ import annotations

import os

RAY_ADDRESS = "RAY_ADDRESS"


def ray_address() -> str | None:
    """Of the Ray cluster that this process is a job of, or that its user named for every driver.

    Ray reads the name twice: drivers take it for an address, `ray job` for the URL of a dashboard, which says
    nothing to a driver. `local` is none.
    """
    found = os.environ.get(RAY_ADDRESS, "").strip()
    return None if found in ("", "local") or found.startswith(("http://", "https://")) else found


def ray_speaks_tls() -> bool:
    """Whether Ray does, in this process."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
