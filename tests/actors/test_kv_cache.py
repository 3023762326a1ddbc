"""The cache's blocks: prefixes are found, forks copy what they must, no history loses or mixes up a block."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actors.kv_cache import Copy, KVCache, Table

BLOCK = 4


def opened(cache: KVCache, tokens: list[int], namespace: str = "") -> Table:
    table = cache.open(tokens, len(tokens), namespace=namespace)
    assert table is not None
    return table


def test_a_prefix_is_found_while_held_and_after() -> None:
    cache = KVCache(10, BLOCK)
    first = opened(cache, list(range(9)))
    cache.remember(first, list(range(9)), 9)
    second = opened(cache, [*range(8), 99])
    assert second.blocks[:2] == first.blocks[:2] and second.blocks[2] != first.blocks[2]
    cache.close(first)
    cache.close(second)
    third = opened(cache, list(range(10)))
    assert third.num_cached == 2
    cache.check_integrity()


def test_the_last_token_is_always_computed() -> None:
    cache = KVCache(4, BLOCK)
    tokens = list(range(8))
    first = opened(cache, tokens)
    cache.remember(first, tokens, 8)
    assert opened(cache, tokens).num_cached == 1


def test_a_namespace_has_its_own_prefixes() -> None:
    cache = KVCache(8, BLOCK)
    tokens = list(range(5))
    cache.remember(opened(cache, tokens, "a"), tokens, 5)
    assert opened(cache, tokens, "b").num_cached == 0
    assert opened(cache, tokens, "a").num_cached == 1


def test_equal_blocks_after_different_ones_are_different() -> None:
    cache = KVCache(8, BLOCK)
    tokens = [1] * 4 + [2] * 4 + [0]
    cache.remember(opened(cache, tokens), tokens, 9)
    assert opened(cache, [2] * 4 + [2] * 4 + [0]).num_cached == 0


def test_a_tail_is_reused_before_its_prefix() -> None:
    cache = KVCache(3, BLOCK)
    tokens = list(range(12))
    table = opened(cache, tokens)
    cache.remember(table, tokens, 12)
    cache.close(table)
    other = opened(cache, [99])
    cache.close(other)
    again = cache.open(tokens, 12)
    assert again is not None and again.num_cached == 2


def test_a_fork_shares_full_blocks_and_copies_the_last() -> None:
    cache = KVCache(8, BLOCK)
    table = opened(cache, list(range(10)))
    forked = cache.fork(table, 10)
    assert forked is not None
    child, copy = forked
    assert child.blocks[:2] == table.blocks[:2]
    assert copy == Copy(table.blocks[2], child.blocks[2])
    even = cache.fork(table, 8)
    assert even is not None and even[1] is None and even[0].blocks == table.blocks[:2]


def test_without_room_nothing_changes() -> None:
    cache = KVCache(3, BLOCK)
    table = opened(cache, list(range(9)))
    assert cache.open([1], 1) is None
    assert cache.grow(table, 13) is None
    assert cache.fork(table, 9) is None
    assert cache.num_available == 0
    cache.check_integrity()
    cache.close(table)
    assert cache.num_available == 3
    assert cache.open([1], 1, reserve=3) is None


def test_prefix_blocks_do_not_count_as_room_twice() -> None:
    """The known blocks of a new table are also the ones that could have been handed out."""
    cache = KVCache(3, BLOCK)
    tokens = list(range(9))
    table = opened(cache, tokens)
    cache.remember(table, tokens, 9)
    cache.close(table)
    assert cache.open(tokens, 16) is None
    cache.check_integrity()


def test_a_closed_table_is_refused() -> None:
    cache = KVCache(3, BLOCK)
    table = opened(cache, [1])
    cache.close(table)
    with pytest.raises(KeyError):
        cache.close(table)
    with pytest.raises(AssertionError, match="closed"):
        cache.grow(table, 9)


@pytest.mark.parametrize("damage", ["leak", "share", "forget"])
def test_integrity_can_fail(damage: str) -> None:
    cache = KVCache(6, BLOCK)
    tokens = list(range(9))
    table, other = opened(cache, tokens), opened(cache, [7])
    cache.remember(table, tokens, 9)
    if damage == "leak":
        table.blocks.pop()
    elif damage == "share":
        other.blocks[0] = table.blocks[0]
    else:
        cache._digest_of.pop(table.blocks[0])
    with pytest.raises(AssertionError):
        cache.check_integrity()


@dataclass(eq=False)
class Held:
    """A sequence and its table."""

    namespace: str
    tokens: list[int]
    table: Table


class Histories(RuleBasedStateMachine):
    """Sequences write what they hold into a cache of the test's own, and must find what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(12, BLOCK)
        self.contents: dict[int, list[tuple[str, tuple[int, ...]]]] = {b: [] for b in range(12)}
        self.held: list[Held] = []

    def written(self, one: Held, start: int) -> None:
        """Every slot holds the whole history that its keys and values depend on."""
        for place in range(start, len(one.tokens)):
            slots = self.contents[one.table.blocks[place // BLOCK]]
            del slots[place % BLOCK :]
            slots.append((one.namespace, tuple(one.tokens[: place + 1])))
        self.cache.remember(one.table, one.tokens, len(one.tokens))

    @rule(
        prefix=st.sampled_from([[], [1] * 4, [1] * 8, [1] * 4 + [2] * 4]),
        tokens=st.lists(st.integers(1, 2), min_size=1, max_size=10),
        namespace=st.sampled_from(["", "adapter"]),
    )
    def open(self, prefix: list[int], tokens: list[int], namespace: str) -> None:
        tokens = prefix + tokens
        table = self.cache.open(tokens, len(tokens), namespace=namespace)
        if table is not None:
            one = Held(namespace, tokens, table)
            self.held.append(one)
            self.written(one, table.num_cached * BLOCK)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), token=st.integers(1, 2))
    def append(self, data: st.DataObject, token: int) -> None:
        one = data.draw(st.sampled_from(self.held))
        if self.cache.grow(one.table, len(one.tokens) + 1) is not None:
            one.tokens.append(token)
            self.written(one, len(one.tokens) - 1)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), part=st.integers(1, 10))
    def fork(self, data: st.DataObject, part: int) -> None:
        one = data.draw(st.sampled_from(self.held))
        tokens = one.tokens[: max(1, len(one.tokens) * part // 10)]
        forked = self.cache.fork(one.table, len(tokens))
        if forked is not None:
            child, copy = forked
            if copy:
                self.contents[copy.target] = list(self.contents[copy.source])
            self.held.append(Held(one.namespace, tokens, child))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.held))
        self.held.remove(one)
        self.cache.close(one.table)

    @invariant()
    def nothing_is_lost(self) -> None:
        self.cache.check_integrity()

    @invariant()
    def everyone_finds_what_it_wrote(self) -> None:
        for one in self.held:
            for place in range(len(one.tokens)):
                found = self.contents[one.table.blocks[place // BLOCK]][place % BLOCK]
                assert found == (one.namespace, tuple(one.tokens[: place + 1]))

    def teardown(self) -> None:
        for one in self.held:
            self.cache.close(one.table)
        self.cache.check_integrity()
        assert self.cache.num_available == 12


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
