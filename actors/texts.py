"""The texts of all requests: how they start, take in what steps sampled, and end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from actors.beam_search import BeamGroup
from actors.drafts import accepted
from actors.messages import Begun, Chunk, Request, Run, StepResult, Tokens
from actors.residents import Residents
from actors.sampling_params import SamplingParams
from actors.sequences import Lane, Sequence
from builders.errors import UserError
from builders.limits import Limits


@dataclass(slots=True)
class Issued:
    """A plan whose result is awaited, by rows."""

    step: int
    lane: Lane
    decoding: list[Sequence]
    runs: list[tuple[Sequence, Run]] = field(default_factory=list)
    sampled: list[Sequence] = field(default_factory=list)
    """Those whose known tokens are all computed."""
    scored: list[tuple[Sequence, Chunk]] = field(default_factory=list)
    """Those of which a part of the prompt is scored."""


def check_request(request: Request, limits: Limits, num_blocks: int) -> None:
    """Refuse what can never be done."""
    params, length = request.params, len(request.prompt)
    most = min(limits.max_input_len, limits.max_seq_len - 1)
    if not 0 < length <= most:
        raise UserError(f"prompt of {length} tokens: must have from 1 to {most}; shorten it")
    if params.num_beams > limits.max_beam_width:
        raise UserError(
            f"num_beams={params.num_beams}: more than max_beam_width={limits.max_beam_width}; "
            "use fewer, or build with more"
        )
    if (texts := max(params.n, params.num_beams)) > limits.max_sequences:
        raise UserError(
            f"{texts} texts at once: more than max_batch_size={limits.max_batch_size} times "
            f"max_beam_width={limits.max_beam_width}; ask for fewer, or build with more"
        )
    limit = min(length + params.max_tokens, limits.max_seq_len)
    shared, whole = length // limits.tokens_per_block, -(-limit // limits.tokens_per_block)
    if (blocks := shared + params.num_beams * (whole - shared)) > num_blocks:
        raise UserError(
            f"prompt of {length} tokens and {limit - length} more: may take {blocks} blocks of the cache, "
            f"which has {num_blocks}; shorten the prompt or lower max_tokens"
        )
    if request.begun:
        _check_begun(request, request.begun, limit - length)


def _check_begun(request: Request, begun: Begun, most: int) -> None:
    """Whether it can go on from there."""
    if request.params.num_beams > 1:
        raise UserError(f"request {request.id}: a beam search has begun; start it anew")
    if len(begun.texts) != request.params.n:
        raise UserError(f"request {request.id}: {len(begun.texts)} texts have begun; n={request.params.n}")
    left = [tokens for tokens in begun.texts if tokens is not None]
    if not left or max(map(len, left)) >= most:
        raise UserError(f"request {request.id}: all of it, or a text, has ended; leave out what has")


def can_draft(params: SamplingParams) -> bool:
    """Whether a token's choice depends on nothing but the text before it."""
    plain = params.repetition_penalty == 1 and params.presence_penalty == params.frequency_penalty == 0
    alone = params.num_beams == 1 and params.grammar is None
    return params.is_greedy and plain and params.min_tokens == 0 and alone


def _begun(request: Request) -> Iterable[tuple[int, ...] | None]:
    """By text, what there is of it."""
    if request.begun:
        return request.begun.texts
    return ((),) * (1 if request.params.num_beams > 1 else request.params.n)


def _rest(request: Request, texts: list[Sequence]) -> Request:
    """Of a request, from what is known of those texts that have not ended."""
    if request.params.num_beams > 1:
        return request
    known = {one.index: tuple(one.tokens[one.num_prompt :]) for one in texts}
    begun = Begun(
        tuple(known.get(index) for index in range(request.params.n)), max(one.num_cached for one in texts)
    )
    return replace(request, begun=begun)


@dataclass(slots=True)
class Texts:
    """By request, those that are not finished."""

    residents: Residents
    eos: frozenset[int]
    max_seq_len: int
    draft_tokens: int
    by_request: dict[str, list[Sequence]] = field(default_factory=dict)
    _arrivals: int = 0

    def add(self, request: Request) -> None:
        """Its first text waits, the others wait for the first."""
        if request.id in self.by_request:
            raise UserError(f"request {request.id}: there is one of this name; choose another")
        texts = [
            self._text(request, index, begun)
            for index, begun in enumerate(_begun(request))
            if begun is not None
        ]
        if request.params.num_beams > 1:
            texts[0].group = BeamGroup.of(texts[0])
        self._arrivals += 1
        self.by_request[request.id] = texts
        leaders = [one for one in texts if len(one.tokens) > one.num_prompt]
        if new := [one for one in texts if one not in leaders]:
            leaders.append(new[0])
            new[0].siblings = new[1:]
        for one in new:
            one.prompt_logprobs = new[0].prompt_logprobs
        for one in leaders:
            self.residents.wait(one)

    def remaining(self) -> list[Request]:
        """What is to be done still, for others to go on with; the first is what came first."""
        every = [
            (texts[0].request, [one for one in texts if not one.doomed]) for texts in self.by_request.values()
        ]
        return [_rest(request, texts) for request, texts in every if texts]

    def _text(self, request: Request, index: int, begun: tuple[int, ...]) -> Sequence:
        params = request.params
        return Sequence(
            request=request,
            index=index,
            arrival=(self._arrivals, index),
            tokens=[*request.prompt, *begun],
            stops=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.eos),
            limit=min(len(request.prompt) + params.max_tokens, self.max_seq_len),
            drafts=self.draft_tokens if can_draft(params) else 0,
            constrained=params.grammar is not None,
            frozen=len(request.prompt) + len(begun),
            num_cached=request.begun.cached_tokens if request.begun else 0,
        )

    def cancel(self, request: str, index: int | None) -> None:
        """End a request's texts, or one of them, without news."""
        for text in [*self.by_request.get(request, ())]:
            if index is None:
                self._drop(text.siblings)
                self._finish(text)
            elif index == text.index:
                self._cancel_one(text)

    def _cancel_one(self, text: Sequence) -> None:
        if text.siblings:  # they need its prompt
            text.doomed, text.limit = True, 0
            return
        for leader in self.by_request[text.request.id]:
            if text in leader.siblings:
                leader.siblings.remove(text)
                self._drop([text])
        self._finish(text)

    def _drop(self, siblings: list[Sequence]) -> None:
        """They have no blocks yet, but may have slots."""
        for one in siblings:
            if one.lane:
                one.lane.free.append(one.slot)
                one.lane, one.slot = None, -1
        siblings.clear()

    def take(self, issued: Issued, result: StepResult) -> list[Tokens]:
        """A step's result, to each what is its own; the news."""
        news: list[Tokens] = []
        count = len(issued.decoding)
        for one, chunk in issued.scored:
            self._score(one, chunk, result)
        self._append(issued.decoding, 0, result, news, bool(result.logprobs or result.logits))
        for one, run in issued.runs:
            self._verify(one, run, count, result, news)
            count += len(run.tokens)
        self._append(issued.sampled, count, result, news, True)
        for one in issued.sampled:
            if one.in_runs and one.lane:
                one.lane.ready.append(one)
        self._decide(issued, result, news)
        return news

    def _score(self, one: Sequence, chunk: Chunk, result: StepResult) -> None:
        """What is new of this: before a preemption another step may have been under way with some of it."""
        told, known = result.prompt_logprobs.get(chunk.slot, ()), one.prompt_logprobs
        assert len(told) == chunk.count - bool(chunk.sampled), "all is scored that was to be"
        known += told[len(known) - chunk.start :]

    def _append(
        self, rows: list[Sequence], first: int, result: StepResult, news: list[Tokens], details: bool
    ) -> None:
        """One token for each; no more than is needed, as this is done for every token."""
        tokens = result.tokens[first : first + len(rows)]
        for row, (one, token) in enumerate(zip(rows, tokens, strict=True), first):
            if one.finished:
                continue
            known = one.tokens
            known.append(token)
            if token in one.stops or len(known) >= one.limit or details:
                self._tell(one, (token,), row, result, news)
            else:
                news.append(Tokens(one.request.id, one.index, (token,)))

    def _verify(self, one: Sequence, run: Run, first: int, result: StepResult, news: list[Tokens]) -> None:
        """A run's sampled tokens, as far as its drafts were right."""
        one.busy = False
        if one.finished or one.group:
            return
        sampled = result.tokens[first : first + len(run.tokens)]
        taken: list[int] = []
        for token in sampled[: 1 + accepted(run.tokens[1:], sampled)]:
            taken.append(token)
            one.tokens.append(token)
            if one.end_at(token):
                break
        one.frozen = len(one.tokens)
        self._tell(one, tuple(taken), first, result, news)
        if one.lane:
            one.lane.ready.append(one)

    def _tell(
        self, one: Sequence, tokens: tuple[int, ...], first: int, result: StepResult, news: list[Tokens]
    ) -> None:
        """The news of tokens that were appended, and the end, if the last of them is one."""
        failure = result.failures.get(first)
        finish = "stop" if failure else one.end_at(tokens[-1])
        if not one.doomed:
            rows = range(first, first + len(tokens))
            is_first = len(one.tokens) == one.num_prompt + len(tokens)
            news.append(
                Tokens(
                    request=one.request.id,
                    index=one.index,
                    tokens=tokens,
                    finish=finish,
                    usage=one.usage() if finish or is_first else None,
                    logprobs=tuple(result.logprobs[row] for row in rows if row in result.logprobs),
                    prompt_logprobs=tuple(one.prompt_logprobs) if is_first else (),
                    logits=tuple(result.logits[row] for row in rows if row in result.logits),
                    failure=failure,
                )
            )
        if finish:
            self._finish(one)

    def _decide(self, issued: Issued, result: StepResult, news: list[Tokens]) -> None:
        """Beam searches whose step this was go on, if they were not sent back to wait meanwhile."""
        groups = {one.request.id: one.group for one, _ in issued.runs if one.group}
        for group in groups.values():
            group.busy = False
        for decision in result.beams:
            group = groups[decision.request]
            if group.is_resident and not group.root.finished:
                found = group.apply(decision, self.residents)
                news += found
                if found:
                    self._finish(group.root)

    def _finish(self, text: Sequence) -> None:
        """Give up all that it has."""
        text.finished = True
        texts = self.by_request[text.request.id]
        texts.remove(text)
        if not texts:
            del self.by_request[text.request.id]
        if text.group and text.group.is_resident:
            text.group.leave(self.residents)
        elif text.table:
            self.residents.leave(text)
        elif text in self.residents.waiting:
            self.residents.waiting.remove(text)
