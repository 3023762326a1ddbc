"""Option values that are more than a word or a number: sizes (200GB), times (12h), ranks (0,2-3)."""

from __future__ import annotations

import re

from builders.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([KMGT]?)(I?)B?", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([smhd]?)", re.IGNORECASE)
_SPAN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")


def size_bytes(option: str, text: str) -> int:
    """`200GB`, `1.5 TiB` or plain bytes."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[3] and not found[2]):
        raise UserError(f"{option}={text}: not a size; write bytes, or a number and KB, MB, GB, TB, GiB, ...")
    unit = found[2].upper()
    return int(float(found[1]) * (_BINARY_UNITS if found[3] else _UNITS)[unit])


def seconds(option: str, text: str) -> float:
    """`90`, `15m`, `12h` or `1.5d`."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UserError(f"{option}={text}: not a time; write seconds, or a number and s, m, h or d")
    return float(found[1]) * _SECONDS[found[2].lower()]


def rank_numbers(option: str, text: str, world_size: int) -> tuple[int, ...]:
    """`0`, `0,3` or `0-3,7`, each below the number of ranks."""
    ranks: set[int] = set()
    for part in text.split(","):
        span = _SPAN.fullmatch(part.strip())
        if span is None:
            raise UserError(f"{option}={text}: not ranks; write them as 0 or 0,2-3")
        first, last = int(span[1]), int(span[2] or span[1])
        if not first <= last < world_size:
            raise UserError(f"{option}={text}: the ranks of this layout are 0 to {world_size - 1}")
        ranks |= set(range(first, last + 1))
    return tuple(sorted(ranks))
