"""Who may use a server, and what is written down of it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from pathlib import Path

from builders.errors import UserError

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Closed unless it says otherwise; without keys, nothing but the address protects a server."""

    keys_file: Path | None = None
    """Made by `rankforge keys add`; with one, every route but /health takes a key. Read again when it
    changes."""
    open_metrics: bool = False
    """/metrics takes no key."""
    cors_origins: tuple[str, ...] = ()
    """Of pages that browsers let use the API, such as https://chat.example.com; * is every page."""
    only_local: bool = False
    """Without keys: requests that name another host than this machine are refused, as a page makes them that
    has given its own name this machine's address. `bound` says where."""
    insecure: bool = False
    """Without keys: whoever reaches the port may use the server, wherever it listens."""
    separate_caches: bool = False
    """Prompts of one key find in the engine's cache what came with the same key, and nothing else: how fast
    an answer begins, and its `cached_tokens`, say nothing of other callers' prompts."""
    log_requests: bool = True
    """A line of JSON for every request."""
    log_prompts: bool = False
    """With the words of its prompt."""

    def __post_init__(self) -> None:
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise UserError(f"cors_origins: {origin!r} is no origin, such as https://chat.example.com")
        if self.separate_caches and self.keys_file is None:
            raise UserError("separate_caches: without keys_file all callers are one; name a keys_file")
        if "*" in self.cors_origins and self.keys_file is None:
            raise UserError("cors_origins: * without keys_file lets every page use the server; name pages")


def bound(access: Access, host: str, *, insecure: bool = False) -> Access:
    """Of a server that listens at this host. One that asks for no key is not to be reached by others."""
    if access.keys_file is not None:
        return access
    if insecure or access.insecure:
        return replace(access, insecure=True)
    if not is_loopback(host):
        raise UserError(
            f"--host {host}: without API keys a server listens on loopback alone; name a --keys_file "
            "(`rankforge keys add` makes one), or say --insecure (in a file, `access: {keys_file: ...}` or "
            "`access: {insecure: true}` of the API)"
        )
    return replace(access, only_local=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. Other names may mean anything by the time they are used."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)
