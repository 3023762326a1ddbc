"""Continuous batching: which tokens every step computes, and what its results mean.

A step may be planned while those before it run: what they sample need not be known for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from actors.beam_search import BeamGroup
from actors.changes import Changes
from actors.chunks import Room
from actors.drafts import prompt_lookup
from actors.kv_cache import KVCache
from actors.messages import Chunk, Request, Run, StepPlan, StepResult, Tokens, bits_of
from actors.residents import Residents, Tally
from actors.sequences import Lane, Sequence
from actors.texts import Issued, Texts, check_request
from builders.limits import SCORED_TOKENS, Limits


class Scheduler:
    """Plans steps for one group of ranks; results come back in order."""

    def __init__(
        self,
        limits: Limits,
        num_blocks: int,
        *,
        eos: Iterable[int] = (),
        lanes: int = 1,
        draft_tokens: int = 0,
        ahead: bool = True,
        scored_tokens: int = SCORED_TOKENS,
    ) -> None:
        """`ahead`: a lane's step may be planned before the one before it has a result."""
        size = limits.max_sequences
        self._limits, self._scored_tokens = limits, scored_tokens
        self._lanes = [Lane([*reversed(range(n * size, (n + 1) * size))], size) for n in range(lanes)]
        self._residents = Residents(KVCache(num_blocks, limits.tokens_per_block), self._lanes)
        self._issued: deque[Issued] = deque()
        self._texts = Texts(self._residents, frozenset(eos), limits.max_seq_len, draft_tokens)
        self._turn = self._step = 0
        self._ahead = ahead

    @property
    def has_work(self) -> bool:
        return bool(self._texts.by_request or self._issued)

    @property
    def num_waiting(self) -> int:
        return len(self._residents.waiting)

    @property
    def num_running(self) -> int:
        return len(self._residents.running)

    @property
    def num_blocks(self) -> int:
        return self._residents.cache.num_blocks

    @property
    def num_blocks_used(self) -> int:
        return self.num_blocks - self._residents.cache.num_available

    @property
    def tally(self) -> Tally:
        return self._residents.tally

    def check_integrity(self) -> None:
        """The cache's own, and that nobody has blocks who should not."""
        cache, running = self._residents.cache, self._residents.running
        cache.check_integrity()
        held = sum(len(one.table.blocks) for one in running if one.table)
        assert held == cache.num_references, "who has blocks runs"
        for lane in self._lanes:
            assert len(set(lane.free)) == len(lane.free), "no slot is free twice"
        if not running:
            assert cache.num_available == cache.num_blocks, "nobody has blocks"
            assert all(lane.num_held == 0 and lane.mask == 0 for lane in self._lanes), "nobody has slots"

    def add(self, request: Request) -> None:
        """Queue a request, or refuse what can never be done."""
        check_request(request, self._limits, self._residents.cache.num_blocks)
        self._texts.add(request)

    def cancel(self, request: str, index: int | None = None) -> None:
        """End a request's texts, or one of them, without further news; if they ended already, do nothing."""
        self._texts.cancel(request, index)

    def remaining(self) -> list[Request]:
        """What is to be done still, each request with all that was told of it: other ranks can go on."""
        return self._texts.remaining()

    def schedule(self) -> StepPlan | None:
        """The next step, of the next lane that has one; None while only results can bring more to compute.

        Lanes are asked twice: what one gives up for want of blocks may be what another can use.
        """
        for _ in range(2 * len(self._lanes)):
            lane = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            if not self._ahead and any(issued.lane is lane for issued in self._issued):
                continue
            plan = self._step_of(lane)
            if plan:
                return plan
        return None

    def _step_of(self, lane: Lane) -> StepPlan | None:
        self._make_room(lane)
        decode, issued = bits_of(lane.mask), Issued(self._step, lane, lane.rows())
        runners, lane.ready = lane.ready, []
        changes = self._residents.changes
        copies, changes.copies = tuple(changes.copies), []  # what is forked from here on is copied later
        left = self._limits.max_num_tokens - len(issued.decoding) - len(runners)
        room = Room(left, left, self._scored_tokens)
        chunks = self._chunks(lane, room, issued)
        drafts = min(room.tokens, room.rows) // len(runners) if runners else 0
        issued.runs = [(one, self._run(one, min(drafts, one.drafts))) for one in runners]
        if not (issued.decoding or runners or chunks):
            changes.copies = [*copies, *changes.copies]
            return None
        plan = StepPlan(
            step=self._step,
            released=tuple(changes.released),
            admitted=tuple(changes.admitted),
            forks=tuple(changes.forks),
            assigned=tuple(changes.assigned),
            copies=copies,
            decode=decode,
            runs=tuple(run for _, run in issued.runs),
            chunks=tuple(chunks),
            beams=tuple(group.plan() for group in groups_of(runners)),
        )
        self._residents.changes = Changes(copies=changes.copies)
        self._issued.append(issued)
        self._step += 1
        lane.clock += 1
        return plan

    def _make_room(self, lane: Lane) -> None:
        """Blocks for the lane's next tokens, for those that get on without chunks."""
        for one in lane.due():
            if one.decoding and one.planned >= one.limit:
                one.stop_decoding()
            elif one.decoding and self._residents.grow(one, one.planned):
                lane.schedule(one, self._limits.tokens_per_block)
        for one in [*lane.ready]:
            if one.table:
                self._residents.grow(one, len(one.tokens))

    def _run(self, sequence: Sequence, most: int) -> Run:
        """The last token, and guesses at what follows."""
        tokens = sequence.tokens
        most = min(most, sequence.limit - len(tokens) - 1)
        drafts = prompt_lookup(tokens, most) if most > 0 else ()
        if drafts and not self._residents.grow_if_free(sequence, len(tokens) + len(drafts)):
            drafts = ()
        sequence.busy = True
        return Run(sequence.slot, len(tokens) - 1, (tokens[-1], *drafts))

    def _chunks(self, lane: Lane, room: Room, issued: Issued) -> list[Chunk]:
        """Of those that have begun, then of those that can be admitted, until the step is full."""
        chunks: list[Chunk] = []
        begun: list[tuple[Sequence, int]] = []
        for one in self._prefilling(lane, room):
            count, scored = room.take(one), one.scores_prompt
            start, one.computed = one.computed, one.computed + count
            done = one.computed == one.target
            sampled = self._begin(one, lane) if done else []
            begun.append((one, one.computed))
            issued.sampled += sampled
            if count:
                chunks.append(Chunk(one.slot, start, count, tuple(text.slot for text in sampled), scored))
            if count and scored:
                issued.scored.append((one, chunks[-1]))
        for one, computed in begun:  # not before: who is admitted in this step cannot use what it computes
            assert one.table, "who computes has a table"
            self._residents.cache.remember(one.table, one.tokens, computed)
        return chunks

    def _prefilling(self, lane: Lane, room: Room) -> Iterator[Sequence]:
        """Those that have begun, and then, while there is room, those that can."""
        yield from [*lane.prefilling] if room.tokens else ()
        waiting = self._residents.waiting
        while waiting and room.begins(waiting[0]) and (one := self._residents.admit(lane)):
            yield one

    def _begin(self, leader: Sequence, lane: Lane) -> list[Sequence]:
        """The prompt is in the cache: who gets a token from it."""
        leader.prefilling = False
        lane.prefilling.remove(leader)
        if leader.group:
            lane.ready.append(leader)
            return []
        siblings, leader.siblings = leader.siblings, []
        texts = [leader]
        for one in siblings:
            one.num_cached = leader.num_cached
            if self._residents.fork(leader, one):
                texts.append(one)
            else:
                self._residents.give_back(one)
        for one in texts:
            if one.in_runs:
                one.frozen = len(one.tokens) + 1
            else:
                lane.join(one)
                lane.schedule(one, self._limits.tokens_per_block)
        return texts

    def update(self, result: StepResult) -> list[Tokens]:
        """Take in the oldest step's result; what callers are to be told."""
        issued = self._issued.popleft()
        assert issued.step == result.step, "results come in the order of plans"
        return self._texts.take(issued, result)


def groups_of(members: Iterable[Sequence]) -> list[BeamGroup]:
    """The beam searches of these sequences, each once."""
    return list(dict.fromkeys(one.group for one in members if one.group))
