"""What the scheduler knows of a text in the making, and of the sequences whose steps are taken in turn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.kv_cache import Table
from actors.messages import Finish, Logprobs, Request, Usage

if TYPE_CHECKING:
    from actors.beam_search import BeamGroup


@dataclass(eq=False, slots=True)
class Sequence:
    """One text of a request.

    It waits, has a slot and computes its known tokens in chunks, then decodes: once every step of its lane
    (`decoding`), or, where the host must know the last token first, in runs.
    """

    request: Request
    index: int
    arrival: tuple[int, int]
    """Order among all."""
    tokens: list[int]
    """All that the host knows: the prompt and what was generated."""
    stops: frozenset[int]
    limit: int
    """Length at which it ends."""
    siblings: list[Sequence] = field(default_factory=list)
    """Texts that start with this one's prompt, once it is computed; each has a slot already if this has."""
    group: BeamGroup | None = None
    drafts: int = 0
    """Tokens to guess in every run; 0 guesses none."""
    constrained: bool = False
    """What may come next depends on its last token, which the host looks at: runs are of one token."""
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    """Of its prompt's tokens but the first, as far as known; texts of one request share the list."""

    lane: Lane | None = None
    slot: int = -1
    table: Table | None = None
    prefilling: bool = False
    computed: int = 0
    """Known tokens that are in the cache after the steps planned so far; while prefilling."""
    num_cached: int = 0
    """Tokens of the prompt that were found in the cache when it was first admitted."""
    decoding: bool = False
    origin: int = 0
    """While decoding, what its length in `planned` is ahead of its lane's clock."""
    due: int = 0
    """The lane's time at which it needs a block, or has all its tokens planned."""
    frozen: int = 0
    """`planned`, while not decoding."""
    busy: bool = False
    """A run is under way."""
    finished: bool = False
    doomed: bool = False
    """Cancelled, but others start with its prompt: it ends with its first token."""

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def planned(self) -> int:
        """Its length when all steps under way are done."""
        return self.origin + self.lane.clock if self.decoding and self.lane else self.frozen

    @property
    def in_flight(self) -> bool:
        """Whether a step under way gives it a token."""
        group = self.group is not None and self.group.busy
        return group or self.busy or self.planned > len(self.tokens)

    @property
    def num_in_cache(self) -> int:
        """Known tokens whose keys and values are in the cache after the steps under way."""
        return self.computed if self.prefilling else min(len(self.tokens), self.planned - 1)

    @property
    def target(self) -> int:
        """Tokens to compute in chunks; a beam's last is a run's."""
        return len(self.tokens) - (self.group is not None)

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are to come: they are told before any token is."""
        wanted = self.request.params.prompt_logprobs is not None and len(self.tokens) == self.num_prompt
        return wanted and len(self.prompt_logprobs) < self.num_prompt - 1

    @property
    def in_runs(self) -> bool:
        return self.group is not None or self.drafts > 0 or self.constrained

    def end_at(self, token: int) -> Finish | None:
        """Whether the last token, which is this one, ends it."""
        output = len(self.tokens) - self.num_prompt
        if token in self.stops and output > self.request.params.min_tokens:
            return "stop"
        return "length" if len(self.tokens) >= self.limit else None

    def usage(self) -> Usage:
        return Usage(self.num_prompt, len(self.tokens) - self.num_prompt, self.num_cached)

    def stop_decoding(self) -> None:
        """No more steps until it is known what those under way give."""
        if self.decoding and self.lane:
            self.frozen = self.planned
            self.decoding = False
            self.lane.leave(self.slot)


@dataclass(eq=False, slots=True)
class Lane:
    """Sequences that share steps. Several lanes take turns, so that each stage of a pipeline has work.

    Decoding sequences take part in every step: a step costs nothing per sequence, only those at a boundary
    of a block or at their end, which a calendar knows, are looked at.
    """

    free: list[int]
    """Slots that nobody has."""
    size: int
    """Slots in all."""
    clock: int = 0
    """Steps planned."""
    mask: int = 0
    """Slots that decode, a bit each."""
    prefilling: list[Sequence] = field(default_factory=list)
    ready: list[Sequence] = field(default_factory=list)
    """Sequences whose next step is a run, with nothing under way."""
    _at: dict[int, Sequence] = field(default_factory=dict)
    _rows: list[Sequence] | None = None
    _calendar: defaultdict[int, list[Sequence]] = field(default_factory=lambda: defaultdict(list))

    @property
    def num_held(self) -> int:
        return self.size - len(self.free)

    def rows(self) -> list[Sequence]:
        """The decoding sequences by slot; the list stays as it is."""
        if self._rows is None:
            self._rows = [self._at[slot] for slot in sorted(self._at)]
        return self._rows

    def join(self, sequence: Sequence) -> None:
        """Decode from the lane's next step on; in this one it gets the token after those it has."""
        sequence.decoding = True
        sequence.origin = len(sequence.tokens) - self.clock
        self._at[sequence.slot] = sequence
        self.mask |= 1 << sequence.slot
        self._rows = None

    def leave(self, slot: int) -> None:
        del self._at[slot]
        self.mask &= ~(1 << slot)
        self._rows = None

    def schedule(self, sequence: Sequence, tokens_per_block: int) -> None:
        """Enter the next time at which a decoding sequence must be looked at."""
        assert sequence.table, "who decodes has a table"
        room = len(sequence.table.blocks) * tokens_per_block
        sequence.due = max(min(room + 1, sequence.limit) - sequence.origin, self.clock + 1)
        self._calendar[sequence.due].append(sequence)

    def due(self) -> list[Sequence]:
        """Those to look at now."""
        entered = self._calendar.pop(self.clock, [])
        return [one for one in entered if one.decoding and one.lane is self and one.due == self.clock]
