"""API keys at rest: names, hashes and limits in one file, never a key."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from builders.errors import UserError

Positive = Annotated[int, Meta(ge=1)]
NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
_KEY = re.compile(r"rf-(?P<id>[0-9a-f]{16})-[A-Za-z0-9_-]{43}")


class KeyRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key; whoever reads this cannot make it."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    """Stands in the key, and is no secret."""
    name: Annotated[str, Meta(pattern=f"^{NAME}$")]
    """Of its holder, for logs."""
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole key. It has 256 random bits: a slow hash would protect nothing more."""
    created_s: int
    """Since 1970."""
    is_admin: bool = False
    """Opens administrative routes, and no others."""
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    """Of prompts and answers together."""
    max_concurrent: Positive | None = None
    """Requests under way at once."""

    def shared_by(self, processes: int) -> KeyRecord:
        """What each of several processes grants, so that all of them grant no more than this: rounded up."""
        limits = ("requests_per_minute", "tokens_per_minute", "max_concurrent")
        given = {name: most for name in limits if (most := getattr(self, name)) is not None}
        return replace(self, **{name: -(-most // processes) for name, most in given.items()})

    def is_of(self, key: str) -> bool:
        """Takes as long whatever differs."""
        return hmac.compare_digest(self.sha256, digest_of(key))


class _KeyFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal["rankforge-keys"] = "rankforge-keys"
    version: Literal[1] = 1
    keys: tuple[KeyRecord, ...]


def new_key(record_id: str) -> str:
    """Shown once; 256 bits of the system's randomness behind a name that is no secret."""
    return f"rf-{record_id}-{secrets.token_urlsafe(32)}"


def id_of(key: str) -> str | None:
    """What a key calls itself; None for what cannot be one."""
    found = _KEY.fullmatch(key)
    return found["id"] if found else None


def digest_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def made(name: str, **limits: int | bool | None) -> tuple[str, KeyRecord]:
    """A key, and what is kept of it."""
    record_id = secrets.token_hex(8)
    key = new_key(record_id)
    fields = {
        "id": record_id,
        "name": name,
        "sha256": digest_of(key),
        "created_s": int(time.time()),
        **limits,
    }
    try:
        return key, msgspec.convert(fields, KeyRecord)
    except msgspec.ValidationError as error:
        raise UserError(f"key {name!r}: {error}; a name is {NAME}, a limit at least 1") from error


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """Refuses a file that others may write: who can add a line has a key."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); make it with `rankforge keys add`"
        ) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(f"{path}: others may write it; `chmod 600 {path}`")
    try:
        keys = msgspec.json.decode(data, type=_KeyFile).keys
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no file of API keys: {error}") from error
    if len({key.id for key in keys}) < len(keys) or len({key.name for key in keys}) < len(keys):
        raise UserError(f"{path}: two keys have one name; remove one of them")
    return keys


def write_keys(path: Path, keys: Sequence[KeyRecord]) -> None:
    """Whole or not at all, and for its owner alone."""
    data = msgspec.json.format(msgspec.json.encode(_KeyFile(keys=tuple(keys))), indent=2)
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)
