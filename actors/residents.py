"""Who waits, who has a slot and blocks, and who gives them up when there are not enough."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from actors.changes import Changes
from actors.kv_cache import KVCache
from actors.sequences import Lane, Sequence


def arrival_of(sequence: Sequence) -> tuple[int, int]:
    return sequence.arrival


@dataclass(slots=True)
class Tally:
    """What is only ever counted up."""

    preemptions: int = 0
    prefix_queries: int = 0
    """Tokens of prompts that were looked up in the cache, once for every request."""
    prefix_hits: int = 0
    """Those that were found."""


@dataclass(slots=True)
class Residents:
    """Sequences are admitted in the order in which they came; the youngest is sent back to wait first.

    So the oldest always gets on, as what the whole cache cannot hold is refused before.
    """

    cache: KVCache
    lanes: list[Lane]
    changes: Changes = field(default_factory=Changes)
    waiting: list[Sequence] = field(default_factory=list)
    """In order of arrival, all of them younger than those that were admitted from here."""
    running: set[Sequence] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)

    def wait(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=arrival_of)

    def admit(self, lane: Lane) -> Sequence | None:
        """The next in line, with a slot, blocks for what is known of it, and slots for its siblings."""
        if not self.waiting:
            return None
        head = self.waiting[0]
        slots = head.group.width if head.group else 1 + len(head.siblings)
        if head.in_flight or slots > len(lane.free) or not self._is_turn_of(lane, head):
            return None
        reserve = len(self.running) + slots - 1 if self.running else 0
        table = self.cache.open(
            head.tokens,
            len(head.tokens),
            namespace=head.request.namespace,
            reserve=reserve,
            most_cached=len(head.prompt_logprobs) if head.scores_prompt else None,
        )
        if table is None:
            return None
        self.waiting.pop(0)
        head.table, head.prefilling, head.frozen = table, True, len(head.tokens)
        head.computed = table.num_cached * self.cache.tokens_per_block
        if len(head.tokens) == head.num_prompt:
            head.num_cached = head.computed
            self.tally.prefix_queries += head.num_prompt
            self.tally.prefix_hits += head.computed
        for one in (head, *head.siblings):
            one.lane, one.slot = lane, lane.free.pop()
        if head.group:
            head.group.spare = [lane.free.pop() for _ in range(slots - 1)]
        lane.prefilling.append(head)
        self.running.add(head)
        self.changes.admit(head)
        return head

    def _is_turn_of(self, lane: Lane, head: Sequence) -> bool:
        """Lanes get equal parts of those that run and those that wait."""
        held = sum(one.num_held for one in self.lanes)
        return lane.num_held * len(self.lanes) < held + len(self.waiting)

    def grow(self, sequence: Sequence, room: int) -> bool:
        """Blocks for so many tokens, at the cost of the youngest; False where that is the sequence itself."""
        while sequence.table:
            added = self.cache.grow(sequence.table, room)
            if added is not None:
                self.changes.grow(sequence, added)
                return True
            self.preempt()
        return False

    def grow_if_free(self, sequence: Sequence, room: int) -> bool:
        """Blocks for so many tokens at nobody's cost."""
        assert sequence.table, "who grows has a table"
        added = self.cache.grow(sequence.table, room)
        if added is None:
            return False
        self.changes.grow(sequence, added)
        return True

    def preempt(self) -> None:
        """The youngest gives up its slot and its blocks, and waits to compute its tokens again."""
        self.tally.preemptions += 1
        victim = max(self.running, key=arrival_of)
        if victim.group:
            victim = victim.group.reset(self)
        else:
            self.leave(victim)
        self.wait(victim)

    def leave(self, sequence: Sequence) -> None:
        """Give up slot and blocks; the cache remembers what is in them."""
        lane, table = sequence.lane, sequence.table
        assert lane and table, "who leaves was there"
        sequence.stop_decoding()
        self.cache.remember(table, sequence.tokens, sequence.num_in_cache)
        self.cache.close(table)
        for queue in (lane.prefilling, lane.ready):
            if sequence in queue:
                queue.remove(sequence)
        self.changes.release(sequence.slot)
        self.running.remove(sequence)
        for one in (sequence, *sequence.siblings):
            lane.free.append(one.slot)
            one.lane, one.slot = None, -1
        sequence.table, sequence.prefilling = None, False

    def fork(self, source: Sequence, target: Sequence) -> bool:
        """The target, which has a slot, starts with all that the source has; False if a block is missing."""
        assert source.table, "who is forked has a table"
        forked = self.cache.fork(source.table, len(source.tokens))
        if forked is None:
            return False
        target.table, copy = forked
        target.lane = source.lane
        self.running.add(target)
        self.changes.fork(source, target, copy)
        return True

    def give_back(self, sequence: Sequence) -> None:
        """A slot that was held for a sequence, which waits for another."""
        assert sequence.lane, "a slot is in a lane"
        sequence.lane.free.append(sequence.slot)
        sequence.lane, sequence.slot = None, -1
        self.wait(sequence)
