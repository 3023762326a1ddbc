"""Logits that a program widens in its last step, which is left to those who read them."""

from __future__ import annotations

import torch

from builders.fuse import narrow_logits
from builders.program import Program, plain_operators, run
from tests.builders.programs import Draft


def head(*, scaled: bool, asked: str = "wanted") -> Program:
    draft = Draft()
    x, wanted = draft.given("x", ("tokens", "8"), "bfloat16"), draft.given(asked, ("wanted",), "int64")
    rows = draft.op("aten.index_select", x, 0, wanted)
    wide = draft.op("aten.to", draft.op("aten.narrow", rows, 1, 0, 5), {"dtype": "float32"})
    return draft.program(draft.op("aten.mul", wide, 0.1) if scaled else wide)


def test_logits_stay_as_wide_as_they_are_computed() -> None:
    bound = {"x": torch.randn(6, 8).bfloat16(), "wanted": torch.tensor([1, 4])}
    (before,) = run(program := head(scaled=False), plain_operators(), bound)
    (after,) = run(narrow_logits(program), plain_operators(), bound)
    assert after.dtype == torch.bfloat16 and torch.equal(after.float(), before)


def test_what_is_computed_wide_stays_wide() -> None:
    for program in (head(scaled=True), head(scaled=False, asked="ids")):
        assert narrow_logits(program) == program
