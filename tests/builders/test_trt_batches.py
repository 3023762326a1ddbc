"""How steps become executions of a plan: nothing here needs TensorRT."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.limits import Limits
from builders.trt.batches import IDLE, Batch, batches_of
from builders.trt.runtime import TrtEngine
from tests.trt_steps import step_of

SLOTS, SIZE, MOST = 6, 32, 8


def batches(parts: list[tuple[int, int, int]], wanted: list[int] | None = None) -> list[Batch]:
    lengths = [0] * SLOTS
    for slot, start, _count in parts:
        lengths[slot] = start
    return batches_of(step_of(parts, wanted), lengths, SIZE, MOST)


def test_prompts_run_alone_and_single_tokens_together() -> None:
    found = batches([(4, 0, 5), (1, 7, 1), (3, 2, 1)])
    assert [(batch.first_slot, batch.sizes, batch.tokens) for batch in found] == [
        (4, (1, 5), [0, 1, 2, 3, 4]),
        (1, (3, 1), [5, IDLE, 6]),
    ]


def test_long_prompts_are_cut() -> None:
    assert [batch.sizes for batch in batches([(0, 0, 20)])] == [(1, 8), (1, 8), (1, 4)]


def test_prompts_are_cut_after_wanted_tokens() -> None:
    found = batches([(0, 3, 7)], wanted=[0, 4, 6])
    assert [batch.tokens for batch in found] == [[0], [1, 2, 3, 4], [5, 6]]
    assert [batch.rows[0].start for batch in found] == [3, 4, 8]
    assert {batch.rows[0].reached for batch in found} == {10}


def test_inputs() -> None:
    prompt, decode = (batch.inputs() for batch in batches([(4, 2, 3), (1, 7, 1), (3, 2, 1)]))
    assert {name: value.tolist() for name, value in prompt.items()} == {
        "positions": [[2, 3, 4]],
        "starts": [2],
        "lengths": [5],
        "wanted": [2],
    }
    assert {name: value.tolist() for name, value in decode.items()} == {
        "positions": [[7], [0], [2]],
        "starts": [7, 0, 2],
        "lengths": [8, 1, 3],
        "wanted": [0, 1, 2],
    }
    assert {value.dtype for value in (*prompt.values(), *decode.values())} == {torch.int32}


def test_idle_slots_are_written_where_their_next_token_will_be() -> None:
    lengths = [3, 9, SIZE, 5, 0, 0]
    (batch,) = batches_of(step_of([(0, 3, 1), (3, 5, 1)]), lengths, SIZE, MOST)
    assert [row.start for row in batch.rows] == [3, 9, SIZE - 1, 5]
    assert lengths == [4, 9, SIZE, 6, 0, 0]


class Remembering:
    """An executor whose slots remember token ids, and whose logits say what a slot holds."""

    def __init__(self) -> None:
        self.slots = [[IDLE] * SIZE for _ in range(SLOTS)]

    def run(self, first_slot: int, inputs: dict[str, Tensor]) -> Tensor:
        rows = []
        for row, (start, ids) in enumerate(
            zip(inputs["starts"].tolist(), inputs["ids"].tolist(), strict=True)
        ):
            slot = self.slots[first_slot + row]
            slot[start : start + len(ids)] = ids
            assert len(slot) == SIZE, "written past the end of a slot"
            rows.append(slot[: start + len(ids)] + [IDLE] * (SIZE - start - len(ids)))
        return torch.tensor(rows)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_every_sequence_sees_its_own_tokens(data: st.DataObject) -> None:
    """Random steps of sequences in random slots, with random tokens wanted."""
    limits = Limits(max_batch_size=SLOTS, max_input_len=MOST, max_seq_len=SIZE, max_num_tokens=64)
    engine = TrtEngine(Remembering(), limits, first=True, last=True)
    texts: dict[int, list[int]] = {}
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = data.draw(st.lists(st.integers(0, SLOTS - 1), min_size=1, unique=True))
        parts, ids, truths = [], [], []
        for slot in chosen:
            if data.draw(st.integers(0, 4)) == 0 or len(texts.get(slot, [])) >= SIZE - 1:
                texts[slot] = []  # a new sequence takes the slot
            text = texts.setdefault(slot, [])
            count = min(data.draw(st.sampled_from([1, 1, 2, 9])), SIZE - len(text))
            parts.append((slot, len(text), count))
            for _token in range(count):
                text.append(data.draw(st.integers(0, 99)))
                truths.append(list(text))
            ids += text[-count:]
        wanted = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1))
        seen = engine.forward(torch.tensor(ids), step_of(parts, wanted)).tolist()
        assert [row[: len(truths[token])] for row, token in zip(seen, wanted, strict=True)] == [
            truths[token] for token in wanted
        ]


def test_hidden_states_come_back_in_the_order_of_the_step() -> None:
    class Doubling:
        def run(self, _first_slot: int, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["hidden"] * 2

    engine = TrtEngine(Doubling(), Limits(max_input_len=8, max_seq_len=SIZE), first=False, last=False)
    hidden = torch.randn(7, 4)
    step = step_of([(0, 4, 1), (5, 0, 4), (2, 0, 1), (1, 9, 1)])
    torch.testing.assert_close(engine.forward(hidden, step), hidden * 2)


def test_runtime_imports_where_no_gpu_is() -> None:
    pytest.importorskip("torch")
    from builders.trt import device

    assert device.PREFILL != device.DECODE
