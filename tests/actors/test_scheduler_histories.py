"""Random histories, deaths included: everyone gets the text it would get alone, in time; no block is lost."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from actors.messages import Request, StepResult, Tokens, decode, encode
from actors.sampling_params import SamplingParams
from actors.scheduler import Scheduler
from builders.errors import UserError
from builders.limits import Limits
from cluster.told import Told
from tests.actors.fake_ranks import EOS, FakeRanks, alone, beams_alone, logits_alone, prompt_alone

LONGEST = 32
PREFIXES: list[tuple[int, ...]] = [(), (1, 1, 1, 1), (1,) * 8, (1, 1, 1, 1, 2, 2, 2, 2)]
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(3, 30),
    min_tokens=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    stop_token_ids=st.sampled_from([(), (), (3,)]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, None, 0]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
    logits=st.sampled_from([False, False, True]),
)
BEAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 8),
    num_beams=st.integers(2, 3),
    seed=st.just(0),
    n=st.integers(1, 2),
    length_penalty=st.sampled_from([0.0, 1.0]),
)
Wish = tuple[tuple[int, ...], SamplingParams, str]
PROMPTS = st.builds(
    lambda prefix, rest: (*prefix, *rest),
    st.sampled_from(PREFIXES),
    st.lists(st.integers(1, 2), min_size=1, max_size=8),
)
WISHES = st.tuples(PROMPTS, PARAMS | PARAMS | PARAMS | BEAMS, st.sampled_from(["", "", "adapter"]))


class Histories(RuleBasedStateMachine):
    """Requests come and are cancelled, steps are planned ahead of results."""

    @initialize(
        num_blocks=st.integers(10, 16),
        max_batch_size=st.integers(1, 2),
        max_beam_width=st.integers(2, 3),
        more_tokens=st.integers(0, 12),
        lanes=st.sampled_from([1, 1, 2]),
        ahead=st.integers(1, 3),
        drafts=st.sampled_from([0, 3]),
        scored=st.sampled_from([2, 5, 256]),
    )
    def start(
        self,
        num_blocks: int,
        max_batch_size: int,
        max_beam_width: int,
        more_tokens: int,
        lanes: int,
        ahead: int,
        drafts: int,
        scored: int,
    ) -> None:
        self.limits = Limits(
            max_batch_size=max_batch_size,
            max_input_len=16,
            max_seq_len=LONGEST,
            max_num_tokens=max_batch_size * max_beam_width + more_tokens,
            max_beam_width=max_beam_width,
            tokens_per_block=4,
        )
        self.ahead, self.scored = ahead, scored

        def open_scheduler() -> Scheduler:
            return Scheduler(
                self.limits, num_blocks, eos=[EOS], lanes=lanes, draft_tokens=drafts, scored_tokens=scored
            )

        self.open_scheduler, self.open_ranks = open_scheduler, lambda: FakeRanks(num_blocks, 4)
        self.scheduler, self.ranks = open_scheduler(), self.open_ranks()
        self.awaited: deque[StepResult] = deque()
        self.requests: dict[str, Request] = {}
        self.told: dict[str, Told] = {}
        self.cancelled: set[tuple[str, int]] = set()
        self.news: defaultdict[tuple[str, int], list[Tokens]] = defaultdict(list)

    @rule(wishes=st.lists(WISHES, min_size=1, max_size=4))
    def add(self, wishes: list[Wish]) -> None:
        for prompt, params, namespace in wishes:
            request = Request(f"r{len(self.requests)}", prompt, params, namespace)
            with suppress(UserError):  # more texts than there are slots, or beams than the cache can hold
                told = Told(request)
                self.scheduler.add(told.request)
                self.requests[request.id], self.told[request.id] = told.request, told

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.requests)))
        params = self.requests[request].params
        indices = [None] if params.num_beams > 1 else [None, *range(params.n)]
        index = data.draw(st.sampled_from(indices))
        self.scheduler.cancel(request, index)
        self.told[request].cancel(index)
        self.cancelled |= {(request, i) for i in (range(params.n) if index is None else [index])}

    @precondition(lambda self: len(self.awaited) < self.ahead)
    @rule()
    def plan(self) -> None:
        plan = self.scheduler.schedule()
        if plan is None:
            assert self.awaited or not self.scheduler.has_work, "whoever waits for nothing is planned"
            return
        assert 0 < plan.num_tokens <= self.limits.max_num_tokens
        result = self.ranks.execute(plan)
        scored = sum(map(len, result.prompt_logprobs.values()))
        assert len(result.tokens) + scored <= self.limits.max_num_tokens, "rows of logits"
        assert scored <= self.scored
        self.awaited.append(result)

    @precondition(lambda self: self.awaited)
    @rule()
    def take(self) -> None:
        for news in self.scheduler.update(self.awaited.popleft()):
            text = news.request, news.index
            assert text not in self.cancelled, "nothing is told of what was cancelled"
            assert not self.news[text] or self.news[text][-1].finish is None, "nothing comes after the end"
            self.news[text].append(news)
            self.told[news.request].take(news)

    @rule()
    def die(self) -> None:
        """All that is left are the requests, and what was told of them."""
        remaining = self.scheduler.remaining()
        rest = [one for told in self.told.values() if (one := told.rest())]
        assert [same_cache(one) for one in rest] == [same_cache(one) for one in remaining]
        self.awaited.clear()
        self.scheduler, self.ranks = self.open_scheduler(), self.open_ranks()
        for request in rest:
            self.scheduler.add(decode(Request, encode(request)))

    @rule(times=st.integers(1, 8))
    def work(self, times: int) -> None:
        for _ in range(times):
            self.step()

    def step(self) -> None:
        if len(self.awaited) < self.ahead:
            self.plan()
            self.scheduler.check_integrity()
        if self.awaited:
            self.take()
            self.scheduler.check_integrity()

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        left = 20 + 2 * sum((LONGEST + 4) * r.params.n * r.params.num_beams for r in self.requests.values())
        while self.scheduler.has_work:
            left -= 1
            assert left, "nobody starves"
            self.step()
        self.scheduler.check_integrity()
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        for request in self.requests.values():
            self.check(request)

    def check(self, request: Request) -> None:
        found = beams_alone(request, LONGEST) if request.params.num_beams > 1 else None
        for index in range(request.params.n):
            if (request.id, index) in self.cancelled:
                continue
            news = self.news[request.id, index]
            text = tuple(token for one in news for token in one.tokens)
            assert text == (found[index] if found else alone(request, index, LONGEST))
            self.check_end(request, news, text)

    def check_end(self, request: Request, news: list[Tokens], text: tuple[int, ...]) -> None:
        usage, params = news[-1].usage, request.params
        assert usage is not None, "the last news say what it took"
        assert (usage.prompt_tokens, usage.output_tokens) == (len(request.prompt), len(text))
        assert usage.cached_tokens < len(request.prompt)
        assert news[0].usage and news[0].usage.prompt_tokens == len(request.prompt)
        assert params.n > 1 or news[0].usage.cached_tokens == usage.cached_tokens
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
        assert news[-1].finish == ("stop" if text[-1] in stops else "length") or params.min_tokens
        assert [one for details in news[1:] for one in details.prompt_logprobs] == []
        scores = prompt_alone(request) if params.prompt_logprobs is not None else []
        assert list(news[0].prompt_logprobs) == scores
        rows = [row for details in news for row in details.logits]
        assert rows == (logits_alone(request, text) if params.logits else [])
        if params.logprobs is not None:
            told = [one.sampled for details in news for one in details.logprobs]
            assert told == [-float(token) for token in text]


def same_cache(request: Request) -> Request:
    """What was in the cache is told with the first token, and may be known before."""
    return replace(request, begun=request.begun and replace(request.begun, cached_tokens=0))


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
