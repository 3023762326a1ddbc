"""What ranks that see logits keep of every slot, and what they choose from a step's logits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from actors.beams import likeliest, log_probabilities
from actors.constraints import Constraints
from actors.grammar_words import open_words
from actors.messages import Admitted, BeamDecision, Fork, Logprobs, StepPlan, StepResult, unpacked
from actors.needs import Needs
from actors.pending import Pending, mark, to_host
from actors.sampler import Drawer, Finder, Sampled, Sampler
from actors.searches import Searches, decide
from actors.step_builder import Batch, Scored
from builders.cuda.steps import there


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What of a model choosing depends on."""

    size: int
    ends: Collection[int]
    """The tokens that end a text."""
    max_seq_len: int
    tokenizer: Path | None = None
    """Where the tokenizer is: grammars are about bytes."""


class Chooser:
    """`last` has for every slot the token that it got last; one more is for padding."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        last: Tensor,
        drawer: Drawer | None = None,
        finder: Finder | None = None,
    ) -> None:
        self._device, self._last, self._vocab_size = last.device, last, vocabulary.size
        self._sampler = Sampler(
            slots=len(last) - 1,
            vocab_size=vocabulary.size,
            device=self._device,
            eos_token_ids=vocabulary.ends,
            drawer=drawer,
            finder=finder,
        )
        self._searches = Searches(ends=vocabulary.ends, max_seq_len=vocabulary.max_seq_len)
        words = partial(open_words, vocabulary.tokenizer, vocabulary.size, [*vocabulary.ends])
        self._constraints = Constraints(words, vocabulary.size, vocabulary.ends, self._device)
        self._admitted: dict[int, Admitted] = {}
        self._wants_logits = 0
        self._chosen = torch.zeros_like(last)

    def take_in(self, plan: StepPlan) -> None:
        """What is new, in the order in which plans have it."""
        for slot in plan.released:
            self._release(slot)
        for one in plan.admitted:
            self._admit(one, one.slot, one.index)
        for fork in plan.forks:
            self._fork(fork)
        for run in plan.runs if self._constraints else ():
            if run.slot in self._constraints:
                self._constraints.add(run.slot, run.tokens[0])
        if plan.beams:
            self._count_beams(plan)

    def greedily(self, logits: Tensor, slots: Tensor) -> None:
        """The likeliest tokens of rows, some of them padding: all that is to be done where `is_plain`."""
        tokens = self._sampler.likeliest(logits)
        self._last.index_copy_(0, slots, tokens)
        self._chosen[: len(tokens)] = tokens

    def warm_up(self) -> None:
        """Have the device load all that choosing may take, which the first who wants it would wait for."""
        everything = Needs(
            draw=True,
            top_k=1,
            top_p=True,
            both=True,
            min_p=True,
            penalties=True,
            bias=True,
            bars=True,
            logprobs=1,
        )
        row = torch.full((1,), self._sampler.nobody, device=self._device)
        scores = torch.zeros(1, self._vocab_size, device=self._device)
        self._sampler.sample(scores, row, row, everything, self._constraints.everything())

    def is_plain(self, plan: StepPlan) -> bool:
        """Nobody wants more than the likeliest tokens."""
        more = self._wants_logits or plan.beams or self._constrains(plan)
        return self._sampler.all_needs == Needs() and not more

    def _constrains(self, plan: StepPlan) -> bool:
        """Some who get a token are held to a grammar: then it is from a run or a chunk."""
        held = self._constraints
        return bool(held) and (
            any(run.slot in held for run in plan.runs)
            or any(slot in held for chunk in plan.chunks for slot in chunk.sampled)
        )

    def taken(self, plan: StepPlan, batch: Batch) -> Pending:
        """The step's tokens, where `greedily` has chosen them."""
        tokens = to_host(self._chosen[: len(batch.sampled)])
        return Pending(done=mark(self._device), result=lambda: _plain_result(plan.step, tokens))

    def choose(self, plan: StepPlan, batch: Batch, logits: Tensor) -> Pending:
        """The tokens of every row, and what else was asked of them."""
        judged = self._judged(batch, logits)
        if not len(batch.sampled):
            return Pending(
                done=mark(self._device), result=lambda: StepResult(plan.step, (), prompt_logprobs=judged())
            )
        searching = {slot for beams in plan.beams for slot in beams.slots}
        rows = [row for row, slot in enumerate(batch.sampled.tolist()) if slot not in searching]
        decide = self._searched(plan, batch, logits, searching)
        if not searching:
            tokens, sampled, failures = self._sampled(batch, logits, None)
        elif rows:
            tokens, sampled, failures = self._sampled(batch, logits, torch.tensor(rows))
        else:
            tokens, sampled, failures = torch.zeros(len(batch.sampled), dtype=torch.int64), None, {}
        details, whole = self._details(rows, batch, sampled), self._whole_rows(batch, logits)
        return Pending(
            done=mark(self._device),
            result=lambda: StepResult(
                step=plan.step,
                tokens=tuple(tokens.tolist()),
                logprobs=details(),
                beams=decide(),
                prompt_logprobs=judged(),
                logits=whole(),
                failures={rows[row]: why for row, why in failures.items()},
            ),
        )

    def _sampled(
        self, batch: Batch, logits: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Sampled | None, Mapping[int, str]]:
        """The tokens of all rows, on their way to the host; those that are not among `rows` get a 0.

        And what failed of grammars, by number among `rows`.
        """
        slots, several = batch.sampled, None
        places = batch.step.positions[batch.step.wanted[: len(slots)]] + 1
        if rows is not None:
            slots, places = slots[rows], places[rows]
            several = there(rows, self._device)
        logits = logits[: len(batch.sampled)] if several is None else logits[several]
        allowed, failures = self._constraints.allowed(slots.tolist()) if self._constraints else (None, {})
        slots, places = there(slots, self._device), there(places, self._device)
        sampled = self._sampler.sample(logits.float(), slots, places, allowed=allowed)
        self._last[slots] = sampled.tokens
        if several is None:
            return to_host(sampled.tokens), sampled, failures
        tokens = sampled.tokens.new_zeros(len(batch.sampled))
        return to_host(tokens.index_copy(0, several, sampled.tokens)), sampled, failures

    def _details(
        self, rows: Sequence[int], batch: Batch, sampled: Sampled | None
    ) -> Callable[[], Mapping[int, Logprobs]]:
        """Log-probabilities by row, where they were asked for."""
        if sampled is None or sampled.logprobs is None:
            return dict
        assert sampled.best_tokens is not None and sampled.best_logprobs is not None, "all are told together"
        numbers = [self._admitted[slot].params.logprobs for slot in batch.sampled[rows].tolist()]
        parts = (sampled.logprobs, sampled.best_tokens, sampled.best_logprobs)
        chosen, best, values = (to_host(part) for part in parts)

        def found() -> Mapping[int, Logprobs]:
            lists = zip(rows, numbers, chosen.tolist(), best.tolist(), values.tolist(), strict=True)
            return {
                row: Logprobs(one, tuple(tokens[:number]), tuple(values[:number]))
                for row, number, one, tokens, values in lists
                if number is not None
            }

        return found

    def _judged(self, batch: Batch, logits: Tensor) -> Callable[[], Mapping[int, tuple[Logprobs, ...]]]:
        """How likely the tokens of scored prompts are, by slot."""
        judges = {one.slot: self._judge(one, logits) for one in batch.scored}
        return lambda: {slot: judge() for slot, judge in judges.items()}

    def _judge(self, scored: Scored, logits: Tensor) -> Callable[[], tuple[Logprobs, ...]]:
        number = self._admitted[scored.slot].params.prompt_logprobs
        assert number is not None, "whose prompt is scored has asked for it"
        scores = log_probabilities(logits[scored.first : scored.first + len(scored.following)])
        following = there(scored.following, self._device)
        best = scores.topk(min(number, scores.shape[-1]))
        parts = (scores.gather(1, following[:, None])[:, 0], best.indices, best.values)
        given, tokens, values = (to_host(part) for part in parts)

        def found() -> tuple[Logprobs, ...]:
            rows = zip(given.tolist(), tokens.tolist(), values.tolist(), strict=True)
            return tuple(Logprobs(one, tuple(tokens), tuple(values)) for one, tokens, values in rows)

        return found

    def _whole_rows(self, batch: Batch, logits: Tensor) -> Callable[[], Mapping[int, bytes]]:
        """What tokens were chosen by, where that was asked for."""
        slots = batch.sampled.tolist() if self._wants_logits else ()
        rows = [row for row, slot in enumerate(slots) if self._admitted[slot].params.logits]
        if not rows:
            return dict
        values = to_host(logits[there(torch.tensor(rows), self._device)].float())
        return lambda: {row: value.numpy().tobytes() for row, value in zip(rows, values, strict=True)}

    def _searched(
        self, plan: StepPlan, batch: Batch, logits: Tensor, searching: Collection[int]
    ) -> Callable[[], tuple[BeamDecision, ...]]:
        """What beam searches make of their rows."""
        rows = [row for row, slot in enumerate(batch.sampled.tolist()) if slot in searching]
        if not rows:
            return tuple
        slots = batch.sampled[rows]
        places = batch.step.positions[batch.step.wanted[rows]] + 1
        scores = log_probabilities(logits[there(torch.tensor(rows), self._device)])
        scores = self._sampler.adjusted(scores, there(slots, self._device), there(places, self._device))
        searches = self._searches.of(plan.beams)
        most = max(search.num_candidates for search in searches)
        values, tokens = map(to_host, likeliest(scores, most))

        def decided() -> tuple[BeamDecision, ...]:
            found = zip(values.tolist(), tokens.tolist(), strict=True)
            return decide(plan.beams, searches, dict(zip(slots.tolist(), found, strict=True)))

        return decided

    def _release(self, slot: int) -> None:
        admitted = self._admitted.pop(slot)
        self._wants_logits -= admitted.params.logits
        self._sampler.release(slot)
        self._constraints.release(slot)
        if admitted.params.num_beams > 1:
            self._searches.release_slot(admitted.request)

    def _admit(self, one: Admitted, slot: int, index: int) -> None:
        known = unpacked(one.tokens)
        prompt, text = known[: one.num_prompt], known[one.num_prompt :]
        self._sampler.admit(slot, one.params, prompt, text=text, index=index)
        self._constraints.admit(slot, one.params, text)
        self._admitted[slot] = one
        self._wants_logits += one.params.logits
        if one.params.num_beams > 1:
            self._searches.take_slot(one)

    def _fork(self, fork: Fork) -> None:
        self._admit(self._admitted[fork.source], fork.target, fork.index)
        if Needs.of(self._admitted[fork.source].params).penalties:
            self._sampler.copy(
                *(there(torch.tensor([slot]), self._device) for slot in (fork.source, fork.target))
            )

    def _count_beams(self, plan: StepPlan) -> None:
        """The tokens that searches chose, which are in the runs: it is not the sampler that chose them."""
        searching = {slot for beams in plan.beams for slot in beams.slots}
        chosen = [
            (run.slot, run.tokens[0])
            for run in plan.runs
            if run.slot in searching and run.start >= self._admitted[run.slot].num_prompt
        ]
        if chosen:
            slots, tokens = torch.tensor(chosen).unbind(1)
            self._sampler.count(there(slots, self._device), there(tokens, self._device))


def _plain_result(step: int, tokens: Tensor) -> StepResult:
    return StepResult(step, tuple(tokens.tolist()))
