"""The scheduler's promises, one by one; all of them together are in test_scheduler_histories.py."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import StepResult, slots_of
from tests.actors.fake_ranks import alone, beams_alone
from tests.actors.service import Service, a_request, limits_of


def test_a_long_prompt_is_cut_and_others_decode_meanwhile() -> None:
    service = Service(limits_of(max_num_tokens=10))
    service.scheduler.add(a_request("short", [1]))
    service.step()
    service.scheduler.add(a_request("long", range(25)))
    cuts = [service.step() for _ in range(3)]
    assert [slots_of(plan.decode) for plan in cuts] == [[0], [0], [0]]
    assert [(c.start, c.count, c.sampled) for p in cuts for c in p.chunks] == [
        (0, 9, ()),
        (9, 9, ()),
        (18, 7, (1,)),
    ]
    service.finish()
    for name, prompt in (("short", [1]), ("long", range(25))):
        assert service.text(name) == alone(a_request(name, prompt), 0, 96)


def test_there_are_slots_for_all_beams_of_a_batch() -> None:
    service = Service(limits_of(max_batch_size=2, max_beam_width=3))
    for name in "ab":
        service.scheduler.add(a_request(name, [ord(name)], num_beams=3))
    assert [len(service.step().runs) for _ in range(2)] == [2, 6]
    service.finish()
    for number in range(7):
        service.scheduler.add(a_request(f"r{number}", [number]))
    service.step()
    assert slots_of(service.step().decode) == [0, 1, 2, 3, 4, 5]


def test_a_prompt_that_was_there_is_not_computed_again() -> None:
    service = Service(limits_of())
    service.scheduler.add(a_request("first", range(20)))
    service.finish()
    service.scheduler.add(a_request("second", [*range(16), 99]))
    plan = service.step()
    assert [(chunk.start, chunk.count) for chunk in plan.chunks] == [(16, 1)]
    service.finish()
    usage = service.news[-1].usage
    assert usage is not None and usage.cached_tokens == 16


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize(("max_tokens", "found"), [(10, 16), (11, 20)])
def test_generated_text_is_found_too(drafts: int, max_tokens: int, found: int) -> None:
    """The next turn of a chat starts with the last answer, whose last token was never computed."""
    service = Service(limits_of(), draft_tokens=drafts)
    service.scheduler.add(a_request("turn", range(10), max_tokens=max_tokens))
    service.finish()
    service.scheduler.add(a_request("next", [*range(10), *service.text("turn"), 5]))
    assert service.step().chunks[0].start == found
    service.finish()


def test_texts_of_one_request_share_its_prompt() -> None:
    service = Service(limits_of())
    request = a_request("r", range(10), n=3, temperature=1.0, max_tokens=20)
    service.scheduler.add(request)
    assert sum(chunk.count for chunk in service.step().chunks) == 10
    assert service.scheduler._residents.cache.num_references == 9
    assert service.scheduler._residents.cache.num_available == 64 - 5
    service.finish()
    texts = [service.text("r", index) for index in range(3)]
    assert texts == [alone(request, index, 96) for index in range(3)]
    assert len(set(texts)) == 3


def test_the_youngest_is_sent_back_and_goes_on_where_it_was() -> None:
    service = Service(limits_of(max_batch_size=2, max_beam_width=1), num_blocks=10)
    requests = [a_request(name, range(place, place + 12), max_tokens=16) for place, name in enumerate("abc")]
    for request in requests:
        service.scheduler.add(request)
    service.finish()
    admitted = [one for plan in service.plans for one in plan.admitted]
    assert [one.request for one in admitted][:4] == ["a", "b", "b", "c"]
    assert len(admitted[2].tokens) > 4 * 12 and admitted[2].num_prompt == 12
    for request in requests:
        assert service.text(request.id) == alone(request, 0, 96)


@pytest.mark.parametrize(
    ("params", "options", "num_blocks"),
    [({}, {}, 15), ({}, {"draft_tokens": 3}, 14), ({"num_beams": 3}, {}, 16)],
    ids=["decoding", "guessing", "beams"],
)
def test_who_is_sent_back_waits_for_what_is_under_way(
    params: dict[str, Any], options: dict[str, int], num_blocks: int
) -> None:
    service = Service(limits_of(max_num_tokens=64), num_blocks, **options)
    young = a_request("young", range(9), **params)
    service.scheduler.add(a_request("old", range(40), temperature=1.0, max_tokens=12))
    service.scheduler.add(young)
    results: list[StepResult] = []
    while not results or not service.scheduler.num_waiting:
        if len(results) > 2:
            service.news += service.scheduler.update(results.pop(0))
        results.append(service.ranks.execute(service.plan()))
    service.scheduler.cancel("old")
    assert service.scheduler.schedule() is None, "its last token is not known"
    for result in results:
        service.news += service.scheduler.update(result)
    service.finish()
    assert service.text("young") == (beams_alone(young, 96)[0] if params else alone(young, 0, 96))


def test_a_text_without_room_for_its_copy_of_the_prompt_waits() -> None:
    service = Service(limits_of(max_num_tokens=4), num_blocks=11)
    older = a_request("older", [1], max_tokens=30)
    both = a_request("both", range(30), n=2, temperature=1.0)
    service.scheduler.add(older)
    service.scheduler.add(both)
    service.finish()
    assert [plan.forks for plan in service.plans if plan.forks] == []
    assert {one.index for plan in service.plans for one in plan.admitted} == {0, 1}
    assert service.text("older") == alone(older, 0, 96)
    assert [service.text("both", index) for index in (0, 1)] == [alone(both, index, 96) for index in (0, 1)]


def test_admission_is_in_order_even_when_a_later_one_would_fit() -> None:
    service = Service(limits_of(), num_blocks=12)
    service.scheduler.add(a_request("a", range(30)))
    service.scheduler.add(a_request("b", range(40, 70)))
    service.scheduler.add(a_request("c", [1]))
    service.finish()
    assert [one.request for plan in service.plans for one in plan.admitted] == ["a", "b", "c"]


def test_a_long_request_gets_on_in_a_stream_of_short_ones() -> None:
    service = Service(limits_of(max_batch_size=2, max_beam_width=1), num_blocks=16)
    service.scheduler.add(a_request("short", [1], max_tokens=3))
    service.scheduler.add(a_request("long", range(40), max_tokens=20))
    steps = 0
    while not any(one.request == "long" and one.finish for one in service.news):
        service.scheduler.add(a_request(f"s{steps}", [2, steps], max_tokens=3))
        service.step()
        steps += 1
        assert steps < 40, "it gets on"


def test_a_step_is_planned_while_those_before_it_run() -> None:
    service = Service(limits_of())
    request = a_request("r", range(3), max_tokens=5)
    service.scheduler.add(request)
    results = []
    while (plan := service.scheduler.schedule()) is not None:
        results.append(service.ranks.execute(plan))
    assert len(results) == 5, "not one step more than its tokens"
    for result in results:
        service.news += service.scheduler.update(result)
    assert service.text("r") == alone(request, 0, 96)
    service.scheduler.check_integrity()


def test_lanes_take_turns_and_share_the_sequences() -> None:
    service = Service(limits_of(), lanes=2)
    for name in "abcd":
        service.scheduler.add(a_request(name, [ord(name)]))
    plans = [service.step() for _ in range(6)]
    assert [slots_of(plan.decode) for plan in plans[-2:]] == [[0, 1], [4, 5]]
    service.finish()
    assert all(service.text(name) == alone(a_request(name, [ord(name)]), 0, 96) for name in "abcd")


def test_right_guesses_save_steps() -> None:
    request = a_request("r", [1, 2] * 8, max_tokens=60)
    steps = {}
    for drafts in (0, 4):
        service = Service(limits_of(), draft_tokens=drafts)
        service.scheduler.add(request)
        service.finish()
        assert service.text("r") == alone(request, 0, 96)
        assert all(run.start + len(run.tokens) < 76 for plan in service.plans for run in plan.runs)
        steps[drafts] = len(service.plans)
    assert steps[0] == 60 and steps[4] < 50


@pytest.mark.parametrize(
    "params", [{"temperature": 1.0}, {"presence_penalty": 1.0}, {"min_tokens": 2}, {"num_beams": 2}]
)
def test_only_plain_greedy_texts_are_guessed(params: dict[str, Any]) -> None:
    service = Service(limits_of(), draft_tokens=4)
    service.scheduler.add(a_request("r", [1, 2] * 8, **params))
    service.finish()
    assert all(len(run.tokens) == 1 for plan in service.plans for run in plan.runs)


def test_beams_fork_and_are_pruned() -> None:
    service = Service(limits_of())
    request = a_request("r", range(10), num_beams=3, n=2)
    service.scheduler.add(request)
    service.finish()
    assert [service.text("r", index) for index in (0, 1)] == beams_alone(request, 96)
    scores = [one.score for one in service.news]
    assert None not in scores and scores == sorted(scores, key=lambda score: -(score or 0.0))
    assert any(plan.forks for plan in service.plans) and any(plan.copies for plan in service.plans)


def test_beams_that_lack_blocks_start_anew() -> None:
    service = Service(limits_of(), num_blocks=14)
    older = a_request("older", range(20, 32), max_tokens=24)
    beams = a_request("beams", range(8), num_beams=3, max_tokens=12)
    service.scheduler.add(older)
    service.scheduler.add(beams)
    service.finish()
    assert [one.request for plan in service.plans for one in plan.admitted].count("beams") > 1
    assert service.text("beams") == beams_alone(beams, 96)[0]
    assert service.text("older") == alone(older, 0, 96)
