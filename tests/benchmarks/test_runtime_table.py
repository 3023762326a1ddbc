"""What a table says of rows, and beside which peers and goals."""

from __future__ import annotations

from benchmarks.runtime_cases import Case
from benchmarks.runtime_figures import Figures
from benchmarks.runtime_record import Measured, Record, Starts
from benchmarks.runtime_table import Limits, Row, reached, table
from builders.mapping import Mapping

CASE = Case(batch=64, tokens_in=512, tokens_out=256)
FIGURES = Figures(
    first_token_s=0.4,
    last_first_token_s=0.8,
    decode_step_s=6e-3,
    decode_tokens_per_s=10_600.4,
    output_tokens_per_s=7600.0,
    prefill_tokens_per_s=44_000.0,
)
LIMITS = Limits(decode_s=4.5e-3, prefill_s=64 * 512 / 88_000)


def test_a_row_has_every_figure_and_its_shares_of_the_roofline() -> None:
    (row,) = table([Row(case=CASE, who="rankforge", figures=FIGURES, limits=LIMITS)]).splitlines()[2:]
    assert row == (
        "| 64, 512, 256 | rankforge | 400 ms | 800 ms | 6.00 ms | 10,600 | 7,600 | 44,000 | 75% | 50% |"
    )


def test_a_rate_alone_has_a_share_too() -> None:
    figures = Figures(decode_tokens_per_s=64 / 6e-3)
    assert Row(case=CASE, who="goal", figures=figures, limits=LIMITS).cells[-2:] == ["75%", ""]
    assert Row(case=CASE, who="goal", figures=figures).cells[-2:] == ["", ""]


def test_times_are_to_be_short_and_rates_high() -> None:
    goal = Figures(decode_step_s=6e-3, output_tokens_per_s=7700.0, prefill_tokens_per_s=1.0)
    assert reached(FIGURES, goal) == {
        "decode_step_s": True,
        "output_tokens_per_s": False,
        "prefill_tokens_per_s": True,
    }
    assert reached(Figures(), goal) == {}


def record(*, on_record: bool) -> Record:
    def one(layout: Mapping, case: Case, step_s: float) -> Measured:
        passes = [Figures(decode_step_s=step_s * times) for times in (1.0, 5.0, 0.5)]
        return Measured(layout=layout, case=case, passes=passes, limits=LIMITS)

    single = Case(batch=1, tokens_in=128, tokens_out=256)
    several = Mapping(tp_size=2)
    return Record(
        facts=["Command: `x`"],
        on_record=on_record,
        measured=[
            one(Mapping(), single, 4e-3),
            one(Mapping(), CASE, 6e-3),
            one(several, single, 2.5e-3),
            one(several, CASE, 5e-3),
        ],
        floor=[Row(case=Case(batch=64, tokens_in=512, tokens_out=32), who="floor", figures=FIGURES)],
    )


def test_rows_of_a_case_stand_together() -> None:
    who = [(row.case.batch, row.who) for row in record(on_record=True).rows]
    ours, peers = ["rankforge", "rankforge, tp 2"], ["vLLM 0.26.0", "goal"]
    assert who == [(1, name) for name in ours + peers] + [(64, name) for name in [*ours, *peers, "floor"]]
    assert [row.who for row in record(on_record=False).rows] == [*ours, *ours, "floor"]


def test_goals_are_compared_with_medians_of_one_device() -> None:
    page = record(on_record=True).markdown()
    assert "- 64, 512, 256: decode step 6.00 ms, goal 5.80 ms: missed" in page
    assert page.count("missed") + page.count("reached") == 1, "what was not measured is not compared"
    assert "goal" not in record(on_record=False).markdown().replace("| goal |", "")


def test_layouts_are_compared_at_batch_1() -> None:
    assert "| tp 2 | 2.50 ms | 1.60 | 1.7 |" in record(on_record=True).markdown()
    assert "| tp 2 | 2.50 ms | 1.60 |  |" in record(on_record=False).markdown()


def test_starts_are_medians_of_phases_and_of_sums() -> None:
    phases = [{"imports": 2.0, "load": 1.0}, {"imports": 1.0, "load": 5.0}, {"imports": 3.0, "load": 1.5}]
    found = Record(facts=[], on_record=True, starts=[Starts(layout=Mapping(), phases=phases)])
    lines = found.markdown().splitlines()
    assert "| process start to first token | imports | load | together |" in lines
    assert "| tp 1 | 2.00 s | 1.50 s | 4.50 s |" in lines
    assert "| goal |  |  | 12 s |" in lines


def test_what_failed_is_said() -> None:
    assert Record(facts=[], on_record=False, problems=["tp 2: why"]).markdown().endswith("FAILED: tp 2: why")
