"""The beam searches of a rank: which slots they have, and what every step makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from actors.beams import BeamSearch, Decision
from actors.messages import Admitted, BeamDecision, Beams, Hypothesis


@dataclass(kw_only=True)
class Searches:
    """A search is there as long as a slot is its."""

    ends: Collection[int]
    """The model's own."""
    max_seq_len: int
    _of_request: dict[str, BeamSearch] = field(default_factory=dict)
    _slots: Counter[str] = field(default_factory=Counter)

    def take_slot(self, admitted: Admitted) -> None:
        """The first slot begins a search."""
        params, request = admitted.params, admitted.request
        if not self._slots[request]:
            self._of_request[request] = BeamSearch(
                params=params,
                ends=frozenset(params.stop_token_ids) | (set() if params.ignore_eos else {*self.ends}),
                max_tokens=min(params.max_tokens, self.max_seq_len - admitted.num_prompt),
            )
        self._slots[request] += 1

    def release_slot(self, request: str) -> None:
        self._slots[request] -= 1
        if not self._slots[request]:
            del self._slots[request], self._of_request[request]

    def of(self, several: Sequence[Beams]) -> tuple[BeamSearch, ...]:
        """Those of a step. What it finds is theirs, even if others have their names when that is known."""
        return tuple(self._of_request[beams.request] for beams in several)


def decide(
    several: Sequence[Beams],
    searches: Sequence[BeamSearch],
    rows: Mapping[int, tuple[list[float], list[int]]],
) -> tuple[BeamDecision, ...]:
    """What becomes of them, from the likeliest continuations of every slot: scores and tokens."""
    return tuple(_decided(beams, search, rows) for beams, search in zip(several, searches, strict=True))


def _decided(
    beams: Beams, search: BeamSearch, rows: Mapping[int, tuple[list[float], list[int]]]
) -> BeamDecision:
    scores, tokens = zip(*(rows[slot] for slot in beams.slots), strict=True)
    return _told(beams, search.step(beams.scores, scores, tokens))


def _told(beams: Beams, decision: Decision) -> BeamDecision:
    kept, finished = (
        tuple(Hypothesis(beams.slots[one.beam], one.token, one.score) for one in some)
        for some in (decision.kept, decision.finished)
    )
    return BeamDecision(beams.request, kept, finished, decision.done)
