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

    def num_candidates(self, several: Sequence[Beams]) -> int:
        """Of every row, for all of them."""
        return max(self._of_request[beams.request].num_candidates for beams in several)

    def decide(
        self, several: Sequence[Beams], rows: Mapping[int, tuple[list[float], list[int]]]
    ) -> tuple[BeamDecision, ...]:
        """From the likeliest continuations of every slot, scores and tokens."""
        return tuple(self._decided(beams, rows) for beams in several if beams.request in self._of_request)

    def _decided(self, beams: Beams, rows: Mapping[int, tuple[list[float], list[int]]]) -> BeamDecision:
        search = self._of_request[beams.request]
        scores, tokens = zip(*(rows[slot] for slot in beams.slots), strict=True)
        decision = search.step(beams.scores, scores, tokens)
        return _told(beams, decision)


def _told(beams: Beams, decision: Decision) -> BeamDecision:
    kept, finished = (
        tuple(Hypothesis(beams.slots[one.beam], one.token, one.score) for one in some)
        for some in (decision.kept, decision.finished)
    )
    return BeamDecision(beams.request, kept, finished, decision.done)
