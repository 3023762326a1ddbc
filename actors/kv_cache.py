"""The blocks of the paged cache: who holds which, what they contain, and the proof that none is lost.

A full block is known by a hash over its tokens and those before it. It stays known when nobody holds it any
more, until it is needed for something else; whoever begins with the same tokens holds it again.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple


class Copy(NamedTuple):
    """The contents of one block, to be written over another's."""

    source: int
    target: int


@dataclass(eq=False, slots=True)
class Table:
    """The blocks of one sequence, in order."""

    blocks: list[int]
    digests: list[bytes]
    """The hash that came before the first block, and one for every block that is known by it."""
    num_cached: int = 0
    """Blocks that were found when the table was opened."""


@dataclass(slots=True)
class KVCache:
    """Owns the numbers of the blocks, from 0; their contents are elsewhere."""

    num_blocks: int
    tokens_per_block: int
    _free: list[int] = field(init=False)
    _unheld: dict[int, None] = field(init=False, default_factory=dict)
    """Known blocks that nobody holds, the longest unused first."""
    _holders: list[int] = field(init=False)
    """For every block, how many tables have it."""
    _block_of: dict[bytes, int] = field(init=False, default_factory=dict)
    _digest_of: dict[int, bytes] = field(init=False, default_factory=dict)
    _tables: set[Table] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._free = list(reversed(range(self.num_blocks)))
        self._holders = [0] * self.num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that can be handed out."""
        return len(self._free) + len(self._unheld)

    @property
    def num_references(self) -> int:
        """Places in tables, over all of them."""
        return sum(self._holders)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.tokens_per_block)

    def open(
        self,
        tokens: Sequence[int],
        room: int,
        *,
        namespace: str = "",
        reserve: int = 0,
        most_cached: int | None = None,
    ) -> Table | None:
        """A table with room for so many tokens; None where that leaves less than the reserve.

        It begins with the known blocks of these tokens, or of so many of them. The last token is never among
        them: a sequence has something to compute.
        """
        most = len(tokens) - 1
        table = self._known(tokens, most if most_cached is None else min(most, most_cached), namespace)
        unheld = sum(block in self._unheld for block in table.blocks)
        missing = self.blocks_for(room) - len(table.blocks)
        if missing + reserve > self.num_available - unheld:
            return None
        for block in table.blocks:
            self._hold(block)
        table.num_cached = len(table.blocks)
        self._tables.add(table)
        table.blocks += [self._take() for _ in range(missing)]
        return table

    def grow(self, table: Table, room: int) -> list[int] | None:
        """The blocks added for so many tokens in all, or None where there are not enough."""
        assert table in self._tables, "a table that was closed does not grow"
        missing = self.blocks_for(room) - len(table.blocks)
        if missing > self.num_available:
            return None
        added = [self._take() for _ in range(missing)]
        table.blocks += added
        return added

    def fork(self, table: Table, num_tokens: int) -> tuple[Table, Copy | None] | None:
        """A table that shares the full blocks of the first tokens, and a copy of the last that is not full.

        None where there is no block for that copy.
        """
        full, rest = divmod(num_tokens, self.tokens_per_block)
        if rest and not self.num_available:
            return None
        shared = table.blocks[:full]
        for block in shared:
            self._hold(block)
        child = Table(list(shared), table.digests[: full + 1])
        self._tables.add(child)
        if not rest:
            return child, None
        child.blocks.append(self._take())
        return child, Copy(table.blocks[full], child.blocks[full])

    def remember(self, table: Table, tokens: Sequence[int], num_tokens: int) -> None:
        """The first tokens are in the cache: make their full blocks known."""
        for index in range(len(table.digests) - 1, num_tokens // self.tokens_per_block):
            digest = self._digest(table.digests[-1], tokens, index)
            table.digests.append(digest)
            block = table.blocks[index]
            if digest not in self._block_of:
                self._block_of[digest] = block
                self._digest_of[block] = digest

    def close(self, table: Table) -> None:
        """Give up a table. Of its known blocks the last are the first to be used for something else."""
        self._tables.remove(table)
        for block in reversed(table.blocks):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._let_go(block)
        table.blocks.clear()

    def check_integrity(self) -> None:
        """Every block is free, known and unheld, or held as often as tables say, or AssertionError."""
        held = Counter(block for table in self._tables for block in table.blocks)
        assert [held[block] for block in range(self.num_blocks)] == self._holders, "holders as tables say"
        places = Counter(self._free) + Counter(self._unheld.keys()) + Counter(set(held))
        assert places == Counter(range(self.num_blocks)), "every block is in one place"
        assert {block: digest for digest, block in self._block_of.items()} == self._digest_of, "one hash each"
        assert self._unheld.keys() <= self._digest_of.keys(), "what is kept is known"
        assert not self._digest_of.keys() & set(self._free), "what is free is not known"
        for table in self._tables:
            assert len(set(table.blocks)) == len(table.blocks), "no table has a block twice"
            assert len(table.digests) <= len(table.blocks) + 1, "no hash without a block"

    def _known(self, tokens: Sequence[int], most: int, namespace: str) -> Table:
        digests = [blake2b(namespace.encode(), digest_size=16).digest()]
        blocks: list[int] = []
        for index in range(most // self.tokens_per_block):
            digest = self._digest(digests[-1], tokens, index)
            block = self._block_of.get(digest)
            if block is None:
                break
            digests.append(digest)
            blocks.append(block)
        return Table(blocks, digests)

    def _digest(self, before: bytes, tokens: Sequence[int], index: int) -> bytes:
        """Long enough that nobody finds two texts with one hash."""
        size = self.tokens_per_block
        block = array("q", tokens[index * size : (index + 1) * size])
        return blake2b(before + block.tobytes(), digest_size=16).digest()

    def _hold(self, block: int) -> None:
        self._holders[block] += 1
        self._unheld.pop(block, None)

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block = next(iter(self._unheld))
            del self._unheld[block]
            del self._block_of[self._digest_of.pop(block)]
        self._holders[block] = 1
        return block

    def _let_go(self, block: int) -> None:
        if block in self._digest_of:
            self._unheld[block] = None
        else:
            self._free.append(block)
