"""Log-probabilities of prompts, and whole rows of logits: who gets them, when, and what they cost others."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import Request, StepResult, Tokens
from tests.actors.fake_ranks import alone, logits_alone, prompt_alone
from tests.actors.service import Service, a_request, limits_of


def check(service: Service, request: Request) -> None:
    """Every text of a request, and what was told with its first news."""
    for index in range(request.params.n):
        news = [one for one in service.news if (one.request, one.index) == (request.id, index)]
        assert service.text(request.id, index) == alone(request, index, 96)
        assert [list(one.prompt_logprobs) for one in news] == [prompt_alone(request), *([] for _ in news[1:])]


def a_scored(name: str, prompt: range | list[int], **params: Any) -> Request:
    return a_request(name, prompt, prompt_logprobs=0, **params)


def test_a_prompt_is_scored_in_parts_and_others_get_on_beside_it() -> None:
    service = Service(limits_of(), scored_tokens=8)
    scored, plain = a_scored("scored", range(20)), a_request("plain", range(30, 50))
    service.scheduler.add(scored)
    service.scheduler.add(plain)
    plans = [service.step() for _ in range(3)]
    assert [[(c.start, c.count, c.scored) for c in plan.chunks] for plan in plans] == [
        [(0, 8, True), (0, 20, False)],
        [(8, 8, True)],
        [(16, 4, True)],
    ]
    service.finish()
    check(service, scored)
    assert service.text("plain") == alone(plain, 0, 96)


def test_who_is_scored_waits_in_line_when_no_more_can_be() -> None:
    service = Service(limits_of(), scored_tokens=8)
    for name, prompt in (("a", range(8)), ("b", range(30, 38))):
        service.scheduler.add(a_scored(name, prompt))
    service.scheduler.add(a_request("c", [1]))
    admitted = [[one.request for one in service.step().admitted] for _ in range(2)]
    assert admitted == [["a"], ["b", "c"]]
    service.finish()


def test_rows_of_logits_are_no_more_than_tokens() -> None:
    """The second prompt's last token would give three rows, for which the first leaves no room."""
    service = Service(limits_of(max_num_tokens=8))
    service.scheduler.add(a_scored("scored", range(8)))
    service.scheduler.add(a_request("three", [1, 2], n=3))
    chunks = [service.step().chunks for _ in range(2)]
    assert [[(c.count, len(c.sampled)) for c in found] for found in chunks] == [[(8, 1)], [(2, 3)]]
    service = Service(limits_of(max_num_tokens=8))
    service.scheduler.add(a_scored("scored", range(6)))
    service.scheduler.add(a_request("three", [1, 2], n=3))
    chunks = [service.step().chunks for _ in range(2)]
    assert [[(c.count, len(c.sampled)) for c in found] for found in chunks] == [[(6, 1), (1, 0)], [(1, 3)]]
    service.finish()


def test_it_takes_nothing_from_the_cache_and_leaves_all_of_it() -> None:
    service = Service(limits_of())
    service.scheduler.add(a_request("before", range(20)))
    service.finish()
    scored, other = a_scored("scored", range(20)), a_scored("other", range(40, 60))
    for request in (scored, other):
        service.scheduler.add(request)
        service.finish()
        check(service, request)
        usage = service.news[-1].usage
        assert usage is not None and usage.cached_tokens == 0
    service.scheduler.add(a_request("after", range(40, 60)))
    assert [(chunk.start, chunk.scored) for chunk in service.step().chunks] == [(16, False)]


@pytest.mark.parametrize("cancelled", [None, 0])
def test_all_texts_of_a_request_are_told(cancelled: int | None) -> None:
    service = Service(limits_of(), scored_tokens=8)
    request = a_scored("r", range(20), n=3, temperature=1.0, logits=True)
    service.scheduler.add(request)
    service.step()
    service.scheduler.cancel("r", cancelled) if cancelled is not None else None
    service.finish()
    for index in {0, 1, 2} - {cancelled}:
        news = [one for one in service.news if one.index == index]
        assert list(news[0].prompt_logprobs) == prompt_alone(request)
        rows = [row for one in news for row in one.logits]
        assert rows == logits_alone(request, service.text("r", index))


def preempted(service: Service, old: Request, young: Request, ahead: int) -> None:
    """Run both to their ends, results coming late."""
    results: list[StepResult] = []
    service.scheduler.add(old)
    service.scheduler.add(young)
    while service.scheduler.has_work:
        plan = service.scheduler.schedule() if len(results) < ahead else None
        if plan:
            service.plans.append(plan)
            results.append(service.ranks.execute(plan))
        else:
            service.news += service.scheduler.update(results.pop(0))
        service.scheduler.check_integrity()
    assert [one.request for plan in service.plans for one in plan.admitted].count(young.id) > 1


@pytest.mark.parametrize("ahead", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 2])
def test_after_a_preemption_nothing_is_lost_or_told_twice(ahead: int, n: int) -> None:
    service = Service(limits_of(), num_blocks=13 + n, scored_tokens=2)
    young = a_scored("young", range(50, 80), n=n, max_tokens=4, temperature=1.0)
    preempted(service, a_request("old", range(20), max_tokens=28), young, ahead)
    check(service, young)


def test_what_was_scored_before_a_preemption_is_not_computed_again() -> None:
    service = Service(limits_of(), num_blocks=14, scored_tokens=2)
    preempted(service, a_request("old", range(20), max_tokens=14), a_scored("young", range(50, 80)), 1)
    starts = [c.start for plan in service.plans for c in plan.chunks if c.scored]
    assert starts.count(0) == 1 and len(starts) < 20


@pytest.mark.parametrize("drafts", [0, 4])
def test_logits_are_those_that_each_token_was_chosen_by(drafts: int) -> None:
    service = Service(limits_of(), draft_tokens=drafts)
    request = a_scored("r", [1, 2] * 8, max_tokens=60, logits=True)
    service.scheduler.add(request)
    service.scheduler.add(a_request("other", [1, 2] * 8, max_tokens=60))
    service.finish()
    check(service, request)
    assert rows_of(service.news, "r") == logits_alone(request, service.text("r"))
    assert rows_of(service.news, "other") == []
    assert any(len(run.tokens) > 1 for plan in service.plans for run in plan.runs) is (drafts > 0)


def rows_of(news: list[Tokens], request: str) -> list[bytes]:
    return [row for one in news if one.request == request for row in one.logits]
