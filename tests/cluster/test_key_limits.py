"""What a key may use, by a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.api_config import ApiConfig
from cluster.api_errors import ApiError
from cluster.api_keys import KeyRecord, made
from cluster.key_limits import KeyUse
from tests.strategies import quick


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def a_use(clock: Clock, **limits: int) -> KeyUse:
    return KeyUse(made("alice", **limits)[1], clock)


def tried(use: KeyUse) -> int | None:
    """None where it is let in, or else what it is to wait."""
    try:
        use.begin()
    except ApiError as error:
        return int(error.headers["Retry-After"])
    use.end()
    return None


@quick
@given(st.integers(1, 100), st.lists(st.floats(0, 90), min_size=1, max_size=60))
def test_no_minute_has_more_than_twice_its_requests(most: int, pauses: list[float]) -> None:
    """A full minute's at once, and another as it fills up; nobody waits longer than he is told."""
    clock = Clock()
    use, taken = a_use(clock, requests_per_minute=most), []
    for pause in pauses:
        clock.now_s += pause
        while (wait := tried(use)) is None:
            taken.append(clock.now_s)
        assert 1 <= wait <= 60 / most + 1
        clock.now_s += wait
        assert tried(use) is None
        taken.append(clock.now_s)
    for start in taken:
        assert sum(start <= at <= start + 60 for at in taken) <= 2 * most + 1


@quick
@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=40))
def test_tokens_are_paid_for_in_the_end(most: int, wishes: list[tuple[int, int]]) -> None:
    """Whatever was reserved: what was used by and by is no more than the minutes gave, but for the last."""
    clock = Clock()
    use, used, last = a_use(clock, tokens_per_minute=most), 0, 0
    for reserved, taken in wishes:
        try:
            use.reserve(reserved)
        except ApiError as error:
            clock.now_s += int(error.headers["Retry-After"])
            use.reserve(reserved)
        assert used - last <= most * (1 + (clock.now_s - Clock.now_s) / 60) + 1e-6
        use.settle(reserved, taken)
        used, last = used + taken, taken


def test_a_request_larger_than_a_minutes_waits_for_a_whole_one() -> None:
    clock = Clock()
    use = a_use(clock, tokens_per_minute=60)
    use.reserve(500)
    use.settle(500, 120)
    for _ in range(2):
        try:
            use.reserve(500)
        except ApiError as error:
            assert error.headers["Retry-After"] == "120"
    clock.now_s += 120
    use.reserve(500)


def test_what_is_refused_is_not_counted() -> None:
    clock = Clock()
    use = a_use(clock, requests_per_minute=60, max_concurrent=1)
    use.begin()
    assert [tried(use) for _ in range(100)] == [1] * 100
    use.end()
    assert tried(use) is None and use.under_way == 0


def test_processes_share_what_a_key_has() -> None:
    record = KeyRecord(
        id="0" * 16, name="a", sha256="0" * 64, created_s=0, requests_per_minute=5, max_concurrent=1
    )
    share = record.shared_by(2)
    assert (share.requests_per_minute, share.tokens_per_minute, share.max_concurrent) == (3, None, 1)
    assert record.shared_by(1) == record
    config = ApiConfig(max_streams=9, max_waiting=4).shared_by(2)
    assert (config.max_streams, config.max_waiting, config.max_n) == (5, 2, 16)
