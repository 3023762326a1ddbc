"""Requests end, are cancelled or refused; plans are small and need little."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from actors.messages import Begun, Request, StepResult, encode
from builders.errors import UserError
from tests.actors.fake_ranks import alone
from tests.actors.service import Service, a_request, limits_of

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancelling_frees_everything_at_once(steps: int) -> None:
    service = Service(limits_of(max_num_tokens=16))
    service.scheduler.add(a_request("r", range(30), n=2))
    for _ in range(steps):
        service.step()
    service.scheduler.cancel("r")
    service.scheduler.check_integrity()
    assert not service.scheduler.has_work and service.scheduler.num_running == 0
    service.scheduler.cancel("r")


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("index", [0, 1])
def test_one_of_several_texts_is_cancelled(steps: int, index: int) -> None:
    service = Service(limits_of(max_num_tokens=16))
    request = a_request("r", range(30), n=2, temperature=1.0)
    service.scheduler.add(request)
    for _ in range(steps):
        service.step()
    told = len(service.text("r", index))
    service.scheduler.cancel("r", index)
    service.finish()
    assert len(service.text("r", index)) == told
    assert service.text("r", 1 - index) == alone(request, 1 - index, 96)


def test_a_name_can_be_used_again_while_its_cancelled_step_runs() -> None:
    service = Service(limits_of())
    service.scheduler.add(a_request("r", range(9)))
    plan = service.scheduler.schedule()
    assert plan is not None
    service.scheduler.cancel("r")
    service.scheduler.add(a_request("r", [1, 2]))
    service.news += service.scheduler.update(service.ranks.execute(plan))
    service.finish()
    assert service.text("r") == alone(a_request("r", [1, 2]), 0, 96)


def test_the_end_says_why_and_what_it_took() -> None:
    service = Service(limits_of())
    request = a_request("r", range(5), stop_token_ids=(3,), max_tokens=60)
    service.scheduler.add(request)
    service.finish()
    last = service.news[-1]
    assert last.tokens == (3,) and last.finish == "stop" and last.usage is not None
    assert last.usage.output_tokens == len(service.text("r")) < 60


def test_a_text_ends_where_sequences_end() -> None:
    service = Service(limits_of(max_seq_len=70))
    service.scheduler.add(a_request("r", range(60), max_tokens=50))
    service.finish()
    assert len(service.text("r")) == 10 and service.news[-1].finish == "length"


def test_results_come_in_order() -> None:
    service = Service(limits_of())
    service.scheduler.add(a_request("r", [1]))
    service.scheduler.schedule()
    with pytest.raises(AssertionError, match="order"):
        service.scheduler.update(StepResult(5, (1,)))


def test_a_plan_that_only_decodes_is_small() -> None:
    service = Service(limits_of(max_batch_size=256, max_beam_width=1, max_num_tokens=512), num_blocks=2048)
    for number in range(256):
        service.scheduler.add(a_request(f"r{number}", [number], max_tokens=20))
    sizes = [len(encode(service.step())) for _ in range(9)]
    assert sorted(sizes)[5] < 64


def begun(*texts: tuple[int, ...] | None, **params: int) -> Request:
    return replace(a_request("r", [1], **{"n": 2, **params}), begun=Begun(texts))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: a_request("r", []), "prompt of 0 tokens: must have from 1 to 64"),
        (lambda: a_request("r", range(65)), "prompt of 65 tokens: must have from 1 to 64"),
        (lambda: a_request("r", [1], num_beams=5), "num_beams=5: more than max_beam_width=4"),
        (lambda: a_request("r", [1], n=5), "5 texts at once: more than max_batch_size=1 times max_b"),
        (lambda: a_request("r", range(40), max_tokens=30), "may take 18 blocks of the cache, which has 16"),
        (lambda: a_request("r", range(9), max_tokens=20, num_beams=4), "may take 26 blocks"),
        (lambda: a_request("there", [1]), "request there: there is one of this name"),
        (lambda: begun((2,)), "request r: 1 texts have begun; n=2"),
        (lambda: begun(None, None), "request r: all of it, or a text, has ended; leave out what has"),
        (lambda: begun((), (2,) * 8), "request r: all of it, or a text, has ended"),
        (lambda: begun((), (), num_beams=2), "request r: a beam search has begun; start it anew"),
    ],
)
def test_what_can_never_be_done_is_refused(make: Callable[[], Request], words: str) -> None:
    service = Service(limits_of(), num_blocks=16)
    service.scheduler.add(a_request("there", [1]))
    with pytest.raises(UserError, match=words):
        service.scheduler.add(make())
    service.finish()


def test_planning_takes_neither_torch_nor_ray() -> None:
    """Nor do the modules that it imports."""
    code = "import sys, actors.scheduler; assert not {'torch', 'ray', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
