"""Ranks without a model: they obey plans, know nothing but plans, and notice every wrong block.

What the cache holds at a token's place is a hash over all tokens up to it, made from the one before, which is
read through the block table. The next token depends on that, so that a text is the same only if its whole
history is.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from actors import messages
from actors.messages import (
    Admitted,
    BeamDecision,
    Beams,
    Hypothesis,
    Logprobs,
    Request,
    StepPlan,
    StepResult,
    slots_of,
    unpacked,
)
from actors.sampling_params import SamplingParams

EOS = 0
VOCABULARY = 7


def state_of(namespace: str, tokens: Sequence[int]) -> bytes:
    """What the cache holds at the last of these tokens."""
    state = namespace.encode()
    for token in tokens:
        state = after(state, token)
    return state


def after(state: bytes, token: int) -> bytes:
    return blake2b(state + token.to_bytes(4, "little"), digest_size=8).digest()


def next_token(state: bytes, last: int, params: SamplingParams, index: int) -> int:
    """Repeats itself often, so that drafts are right sometimes."""
    if not params.is_greedy:
        state = after(state, 1000 * (params.seed or 0) + index)
    chance = int.from_bytes(state, "little")
    return (last + 2) % VOCABULARY if chance % 4 else chance // 4 % VOCABULARY


def score_of(state: bytes, token: int) -> float:
    """A log-probability."""
    return -int.from_bytes(after(state, token)[:2], "little") / 2**16


def row_of(state: bytes) -> bytes:
    """Logits."""
    return array("f", [score_of(state, token) for token in range(VOCABULARY)]).tobytes()


def decide(
    request: str, rows: list[tuple[int, float, int, bytes]], params: SamplingParams, done: int
) -> BeamDecision:
    """From (slot, score, output length, state) of all hypotheses, and how many texts are done."""
    candidates = sorted(
        (
            Hypothesis(slot, token, score + score_of(state, token))
            for slot, score, _, state in rows
            for token in range(VOCABULARY)
        ),
        key=lambda one: (-one.score, one.slot, one.token),
    )[: 2 * params.num_beams]
    kept = [one for one in candidates if one.token != EOS][: params.num_beams]
    length = rows[0][2] + 1
    finished = tuple(
        Hypothesis(one.slot, one.token, one.score / length**params.length_penalty)
        for one in candidates[: params.num_beams]
        if one.token == EOS
    )
    return BeamDecision(request, tuple(kept), finished, done + len(finished) >= params.num_beams)


@dataclass
class Slot:
    """What a rank keeps."""

    admitted: Admitted
    index: int
    tokens: list[int]
    table: list[int]


@dataclass
class FakeRanks:
    """One rank, as all are alike."""

    num_blocks: int
    tokens_per_block: int
    slots: dict[int, Slot] = field(default_factory=dict)
    done_beams: dict[str, int] = field(default_factory=dict)
    """Finished hypotheses by request."""
    cache: dict[tuple[int, int], bytes] = field(default_factory=dict)
    _before: Mapping[tuple[int, int], bytes] = field(default_factory=dict)

    def execute(self, plan: StepPlan) -> StepResult:
        plan = messages.decode(StepPlan, messages.encode(plan))
        self.take_in(plan)
        return messages.decode(StepResult, messages.encode(self.compute(plan)))

    def compute(self, plan: StepPlan) -> StepResult:
        """What a plan samples, once it is taken in."""
        self._before = dict(self.cache)
        tokens: list[int] = []
        rows: list[tuple[int, bytes]] = []
        for number in slots_of(plan.decode):
            rows.append((number, self._decode(number, tokens)))
        states: dict[int, bytes] = {}
        scores: dict[int, tuple[Logprobs, ...]] = {}
        for run in plan.runs:
            slot = self.slots[run.slot]
            slot.tokens[run.start :] = run.tokens
            limit = slot.admitted.num_prompt + slot.admitted.params.max_tokens
            assert len(slot.tokens) < limit, "the last token is not for computing"
            for place, state in enumerate(self._computed(slot, run.start, len(run.tokens)), run.start):
                tokens.append(next_token(state, slot.tokens[place], slot.admitted.params, slot.index))
                states[run.slot] = state
                rows.append((run.slot, state))
        for chunk in plan.chunks:
            source = self.slots[chunk.slot]
            computed = self._computed(source, chunk.start, chunk.count)
            if chunk.scored:
                scores[chunk.slot] = self._scores(source, chunk.start, computed)
                assert len(scores[chunk.slot]) == chunk.count - bool(chunk.sampled), "all that follow"
            for number in chunk.sampled:
                self._sample(number, computed[-1], tokens)
                rows.append((number, computed[-1]))
        beams = tuple(self._decide(beams, states) for beams in plan.beams)
        asked = [(row, state) for row, (slot, state) in enumerate(rows) if self._params(slot).logits]
        logits = {row: row_of(state) for row, state in asked}
        return StepResult(plan.step, tuple(tokens), self._logprobs(rows, tokens), beams, scores, logits)

    def take_in(self, plan: StepPlan) -> None:
        for number in plan.released:
            del self.slots[number]
        for admitted in plan.admitted:
            assert admitted.slot not in self.slots, "a slot is released before it is taken"
            self.slots[admitted.slot] = Slot(
                admitted, admitted.index, unpacked(admitted.tokens), list(admitted.blocks)
            )
            self.done_beams[admitted.request] = 0
        for fork in plan.forks:
            assert fork.target not in self.slots, "a slot is released before it is taken"
            source = self.slots[fork.source]
            self.slots[fork.target] = replace(
                source, index=fork.index, tokens=list(source.tokens), table=list(source.table)
            )
        for assigned in plan.assigned:
            if assigned.slot in self.slots:
                self.slots[assigned.slot].table[assigned.first :] = assigned.blocks
        for source_block, target in plan.copies:
            for place in range(self.tokens_per_block):
                self.cache[target, place] = self.cache.get((source_block, place), b"empty")

    def _params(self, slot: int) -> SamplingParams:
        return self.slots[slot].admitted.params

    def _decode(self, number: int, tokens: list[int]) -> bytes:
        slot = self.slots[number]
        (state,) = self._computed(slot, len(slot.tokens) - 1, 1)
        self._sample(number, state, tokens)
        return state

    def _scores(self, slot: Slot, start: int, states: list[bytes]) -> tuple[Logprobs, ...]:
        """By what is in the cache at each place, of the token that follows in the prompt."""
        admitted = slot.admitted
        assert admitted.params.prompt_logprobs is not None, "who is scored asked for it"
        following = slot.tokens[start + 1 : admitted.num_prompt]
        return tuple(
            Logprobs(score_of(state, token)) for state, token in zip(states, following, strict=False)
        )

    def _sample(self, number: int, state: bytes, tokens: list[int]) -> None:
        slot = self.slots[number]
        token = next_token(state, slot.tokens[-1], slot.admitted.params, slot.index)
        slot.tokens.append(token)
        tokens.append(token)

    def _computed(self, slot: Slot, start: int, count: int) -> list[bytes]:
        """Nothing is read that another sequence writes in this step."""
        state = slot.admitted.namespace.encode()
        if start:
            state = self._before[self._place(slot, start - 1)]
        assert state == state_of(slot.admitted.namespace, slot.tokens[:start]), "the cache holds another text"
        states = []
        for place in range(start, start + count):
            state = after(state, slot.tokens[place])
            self.cache[self._place(slot, place)] = state
            states.append(state)
        return states

    def _place(self, slot: Slot, place: int) -> tuple[int, int]:
        block = slot.table[place // self.tokens_per_block]
        assert 0 <= block < self.num_blocks, "blocks are those of the cache"
        return block, place % self.tokens_per_block

    def _decide(self, beams: Beams, states: Mapping[int, bytes]) -> BeamDecision:
        rows = []
        for number, score in zip(beams.slots, beams.scores, strict=True):
            slot = self.slots[number]
            rows.append((number, score, len(slot.tokens) - slot.admitted.num_prompt, states[number]))
        params = self.slots[beams.slots[0]].admitted.params
        decision = decide(beams.request, rows, params, self.done_beams[beams.request])
        self.done_beams[beams.request] += len(decision.finished)
        return decision

    def _logprobs(self, rows: list[tuple[int, bytes]], tokens: list[int]) -> dict[int, Logprobs]:
        """For those who asked, what tells the token it belongs to."""
        asked = [self._params(number).logprobs is not None for number, _ in rows]
        return {row: Logprobs(-float(tokens[row])) for row, wanted in enumerate(asked) if wanted}


def alone(request: Request, index: int, limit: int) -> tuple[int, ...]:
    """The text without scheduler, cache and company; at most so long, prompt included."""
    tokens, params = list(request.prompt), request.params
    stops = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    limit = min(limit, len(tokens) + params.max_tokens)
    while len(tokens) < limit:
        tokens.append(next_token(state_of(request.namespace, tokens), tokens[-1], params, index))
        if tokens[-1] in stops and len(tokens) - len(request.prompt) > params.min_tokens:
            break
    return tuple(tokens[len(request.prompt) :])


def prompt_alone(request: Request) -> list[Logprobs]:
    """What is told of a prompt."""
    prompt = request.prompt
    states = [state_of(request.namespace, prompt[:place]) for place in range(1, len(prompt))]
    return [Logprobs(score_of(state, token)) for state, token in zip(states, prompt[1:], strict=True)]


def logits_alone(request: Request, text: Sequence[int]) -> list[bytes]:
    """By what each token of the text was chosen."""
    known = [*request.prompt, *text]
    return [
        row_of(state_of(request.namespace, known[:place])) for place in range(len(request.prompt), len(known))
    ]


def beams_alone(request: Request, limit: int) -> list[tuple[int, ...]]:
    """The texts that beam search finds, the best first."""
    params, namespace = request.params, request.namespace
    limit = min(limit - len(request.prompt), params.max_tokens)
    live: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    found: list[tuple[float, tuple[int, ...]]] = []
    while True:
        rows = [
            (slot, score, len(output), state_of(namespace, [*request.prompt, *output]))
            for slot, (score, output) in live.items()
        ]
        decision = decide(request.id, rows, params, len(found))
        found += [(one.score, (*live[one.slot][1], one.token)) for one in decision.finished]
        live = {i: (one.score, (*live[one.slot][1], one.token)) for i, one in enumerate(decision.kept)}
        if decision.done:
            break
        if len(live[0][1]) >= limit:
            found += [(score / len(out) ** params.length_penalty, out) for score, out in live.values()]
            break
    return [output for _, output in sorted(found, key=lambda one: -one[0])[: params.n]]
