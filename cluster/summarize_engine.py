"""Summaries by an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from actors.detokenizer import Words
from actors.sampling_params import SamplingParams
from cluster.generation import Output, TokenSource, generate
from cluster.summaries import Prompt, Summary, Text


class EngineSummarizer:
    """An engine whose ranks are up."""

    def __init__(
        self,
        source: TokenSource,
        tokenizer: PreTrainedTokenizerBase,
        params: SamplingParams,
        *,
        wants_logprobs: bool = False,
    ) -> None:
        self._source, self._words, self._wants_logprobs = source, Words(tokenizer), wants_logprobs
        # A beam's score has them already.
        by_token = wants_logprobs and params.num_beams == 1
        self._params = replace(params, logprobs=0) if by_token else params

    def summarize(self, prompts: Sequence[Prompt]) -> list[Summary]:
        """All at once: the engine takes in as many as it has room for."""
        results = generate(self._source, prompts, self._params, words=self._words)
        return [Summary(texts=tuple(map(self._text, result.outputs))) for result in results]

    def scored(self, prompts: Sequence[Prompt], summaries: Sequence[Summary]) -> list[Summary]:
        """The prompts once more, each with one token after it."""
        if not self._wants_logprobs:
            return list(summaries)
        scoring = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        results = generate(self._source, prompts, scoring, words=None)
        return [
            replace(summary, prompt_logprob=sum(one.sampled for one in result.prompt_logprobs))
            for summary, result in zip(summaries, results, strict=True)
        ]

    def _text(self, output: Output) -> Text:
        logprob = self._logprob(output) if self._wants_logprobs else None
        return Text(tokens=output.tokens, text=output.text or "", logprob=logprob)

    def _logprob(self, output: Output) -> float:
        """A beam's score is this over its length to the power of the length penalty."""
        if output.score is not None:
            return output.score * len(output.tokens) ** self._params.length_penalty
        return sum(one.sampled for one in output.logprobs)
