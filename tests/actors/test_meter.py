"""What a generator counts, against what it was told to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from actors.engine_stats import Buckets, Distribution, EngineStats, continued
from actors.generator import Generator
from actors.messages import Request
from actors.meter import Meter
from actors.open_generator import GeneratorOptions, open_generator
from actors.sampling_params import SamplingParams
from builders.mapping import Mapping
from tests.actors.engines import small
from tests.actors.scenario import NUM_BLOCKS
from tests.actors.service import Service, a_request, limits_of
from tests.strategies import quick


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@quick
@given(st.lists(st.floats(-10, 110)))
def test_buckets_hold_what_is_up_to_their_bound(values: list[float]) -> None:
    bounds = (0.0, 1.0, 10.0, 100.0)
    buckets = Buckets(bounds)
    for value in values:
        buckets.add(value)
    seen = buckets.seen
    for place, bound in enumerate(bounds):
        assert sum(seen.counts[: place + 1]) == sum(value <= bound for value in values)
    assert sum(seen.counts) == len(values) and abs(seen.total - sum(values)) < 1e-6


def test_steps_and_waits_by_the_clock() -> None:
    """One text at once: the second waits for the first's three steps, of two seconds each."""
    clock, service = Clock(), Service(limits_of(max_beam_width=1), num_blocks=16)
    meter = Meter(clock)
    for name in "ab":
        service.scheduler.add(a_request(name, [1, 2, 3], max_tokens=3))
        meter.arrive(name)
    while service.scheduler.has_work:
        plan = service.plan()
        meter.begin(plan)
        clock.now_s += 2
        service.scheduler.update(service.ranks.execute(plan))
        meter.end(plan, is_last=not service.scheduler.has_work)
    clock.now_s += 100
    stats = meter.stats(service.scheduler)
    assert stats.step_seconds and stats.queue_seconds and stats.step_tokens
    assert (sum(stats.step_seconds.counts), stats.step_seconds.total) == (6, 12)
    assert (sum(stats.queue_seconds.counts), stats.queue_seconds.total) == (2, 6)
    assert stats.step_tokens.total == sum(plan.num_tokens for plan in service.plans) == 2 * (3 + 2)


def test_who_is_sent_back_has_waited_once() -> None:
    clock, service = Clock(), Service(limits_of(), num_blocks=6)
    meter = Meter(clock)
    for name in "abc":
        service.scheduler.add(a_request(name, range(4), max_tokens=12))
        meter.arrive(name)
    while service.scheduler.has_work:
        plan = service.step()
        meter.begin(plan)
        meter.end(plan, is_last=False)
    stats = meter.stats(service.scheduler)
    assert stats.queue_seconds and sum(stats.queue_seconds.counts) == 3
    admitted = sum(len(plan.admitted) for plan in service.plans)
    assert stats.preemptions == admitted - 3 > 0
    assert (stats.cache_blocks, stats.cache_blocks_used) == (6, 0)


def test_counts_go_on_with_other_ranks() -> None:
    """Sizes are those of the last."""
    seen = Distribution((1.0,), (2, 3), 9.0)
    before = EngineStats(cache_blocks=9, cache_blocks_used=4, prefix_hits=3, preemptions=1, step_seconds=seen)
    now = EngineStats(cache_blocks=8, prefix_hits=2, recoveries=1, step_seconds=seen, queue_seconds=seen)
    both = Distribution((1.0,), (4, 6), 18.0)
    assert continued(before, now) == EngineStats(
        cache_blocks=8, prefix_hits=5, preemptions=1, recoveries=1, step_seconds=both, queue_seconds=seen
    )
    assert continued(EngineStats(), now) == now


def test_of_a_real_engine(tmp_path: Path) -> None:
    engine = small(tmp_path, Mapping())
    with open_generator(engine, GeneratorOptions(num_blocks=NUM_BLOCKS)) as generator:
        _finish(generator, "a")
        generator.add(_request("b"))
        generator.step()
        assert 0 < generator.stats().cache_blocks_used <= NUM_BLOCKS
        _drain(generator)
        stats = generator.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (24, 8)
    assert stats.cache_blocks == NUM_BLOCKS and stats.cache_blocks_used == stats.preemptions == 0
    assert stats.step_tokens and stats.step_tokens.total == 12 + 4 + 2 * 4
    assert stats.queue_seconds and sum(stats.queue_seconds.counts) == 2
    assert stats.step_seconds and sum(stats.step_seconds.counts) == sum(stats.step_tokens.counts)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stats), type=EngineStats) == stats


def _request(name: str) -> Request:
    return Request(name, tuple(range(12)), SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))


def _finish(generator: Generator, name: str) -> None:
    generator.add(_request(name))
    _drain(generator)


def _drain(generator: Generator) -> None:
    while generator.has_work:
        generator.step()
