"""What a step costs the CPU: planning, messages, arrays, results; beside 300 us, the goal at 256 sequences.

python -m benchmarks.step_cost
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from actors import messages
from actors.messages import Request, StepPlan, StepResult, Tokens
from actors.sampling_params import SamplingParams
from actors.scheduler import Scheduler
from actors.step_builder import StepBuilder
from builders.limits import Limits

GOAL_US = 300
STEPS = 400
ValueT = TypeVar("ValueT")


class Clock:
    """Microseconds of every part, step by step."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def __call__(self, part: str, work: Callable[[], ValueT]) -> ValueT:
        start = time.perf_counter()
        value = work()
        self.spent.setdefault(part, []).append(1e6 * (time.perf_counter() - start))
        return value


def scheduler_of(sequences: int, prompt: int) -> tuple[Scheduler, StepBuilder]:
    """All of them admitted, with more to say than is measured."""
    limits = Limits(max_batch_size=sequences, max_seq_len=2048, max_num_tokens=8192)
    scheduler = Scheduler(limits, 2048 // 32 * sequences, eos=[2])
    for number in range(sequences):
        tokens = tuple(number * 7 + place % 1000 + 3 for place in range(prompt + number % 32))
        scheduler.add(Request(f"request-{number}", tokens, SamplingParams(max_tokens=1024)))
    return scheduler, StepBuilder(limits)


def step(scheduler: Scheduler, builder: StepBuilder, clock: Clock) -> tuple[StepPlan, int]:
    """One step without a device: its plan, and the bytes that it takes."""
    plan = clock("schedule", scheduler.schedule)
    assert plan is not None, "there is work"
    sent = clock("encode plan", lambda: messages.encode(plan))
    clock("decode plan", lambda: messages.decode(StepPlan, sent))
    batch = clock("build step", lambda: builder.build(plan))
    sampled = StepResult(plan.step, tuple(range(1000, 1000 + len(batch.sampled))))
    news = clock("update", lambda: scheduler.update(sampled))
    told = clock("encode news", lambda: [messages.encode(one) for one in news])
    assert messages.decode(Tokens, told[0]) == news[0], "what is sent arrives"
    return plan, len(sent)


def measured(sequences: int) -> None:
    scheduler, builder = scheduler_of(sequences, prompt=512)
    while step(scheduler, builder, Clock())[0].chunks:
        pass
    clock = Clock()
    gc.collect()
    sizes = [step(scheduler, builder, clock)[1] for _ in range(STEPS)]
    medians = {part: statistics.median(times) for part, times in clock.spent.items()}
    totals = sorted(map(sum, zip(*clock.spent.values(), strict=True)))
    row = [f"{sequences}", *(f"{medians[part]:.1f}" for part in medians)]
    row += [f"{statistics.median(totals):.0f}", f"{totals[len(totals) * 99 // 100]:.0f}"]
    row += [f"{100 * statistics.median(totals) / GOAL_US:.0f}%", f"{statistics.mean(sizes):.0f}"]
    if sequences == 1:
        print(line(["sequences", *medians, "sum, median", "sum, p99", f"of {GOAL_US} us", "plan bytes"]))
        print(line(["---"] * 11))
    print(line(row))


def line(values: Iterable[str]) -> str:
    return "| " + " | ".join(values) + " |"


def main() -> None:
    print(f"microseconds of one thread, medians over {STEPS} steps in which all sequences decode\n")
    for sequences in (1, 64, 256):
        measured(sequences)


if __name__ == "__main__":
    main()
