"""The options of `rankforge keys add`, `list` and `remove`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import argument, option

_KEYS_FILE = "The file of API keys that `rankforge serve --keys_file` reads; it holds hashes, no keys."


@dataclass(frozen=True, kw_only=True)
class AddKeyOptions:
    """Whose key, and what it may use."""

    keys_file: Path = option(help=_KEYS_FILE)
    name: str = option(help="Of its holder, for logs and for removing it.")
    admin: bool = option(False, help="A key for administrative routes, such as /metrics, and no others.")
    requests_per_minute: int | None = option(None, help="At most so many requests a minute.", least=1)
    tokens_per_minute: int | None = option(
        None, help="At most so many tokens a minute, of prompts and answers together.", least=1
    )
    max_concurrent: int | None = option(None, help="At most so many requests at once.", least=1)
    json: bool = option(False, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class KeysOptions:
    """Which file."""

    keys_file: Path = option(help=_KEYS_FILE)
    json: bool = option(False, help="Print the result as JSON.")


@dataclass(frozen=True, kw_only=True)
class RemoveKeyOptions:
    """Which key of which file."""

    name: str = argument(help="The key's name, or its id.")
    keys_file: Path = option(help=_KEYS_FILE)
