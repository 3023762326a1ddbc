"""What the page and the command say of the old scripts' options is one, and true of ours."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cluster.build_options import BuildOptions
from cluster.convert_options import ConvertOptions
from cluster.migration import TABLE, Row, advice
from cluster.run_options import RunOptions
from cluster.summarize_options import SummarizeOptions

PAGE = Path(__file__).parent.parent.parent / "docs/migration.md"
OURS = {
    f"--{name}"
    for options in (ConvertOptions, BuildOptions, RunOptions, SummarizeOptions)
    for field in dataclasses.fields(options)
    for name in (field.name, field.metadata.get("also"))
}


def test_the_page_has_the_very_table() -> None:
    _, _, rows = PAGE.read_text().partition("| --- | --- |\n")
    assert rows.splitlines() == [f"| {row.old} | {row.here} |" for row in TABLE]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.old[:40])
def test_what_is_gone_is_gone_and_what_is_kept_is_there(row: Row) -> None:
    assert row.options()
    assert OURS.isdisjoint(row.options()) if row.gone else OURS.issuperset(row.options())


@pytest.mark.parametrize("row", [row for row in TABLE if row.gone], ids=lambda row: row.old[:40])
def test_advice_is_a_line_of_the_table(row: Row) -> None:
    for option in row.options():
        told = advice(option)
        assert told is not None and told.isprintable() and "`" not in told
        assert row.here.replace("`", "") in told


def test_advice_is_never_of_two_kinds() -> None:
    names = [name for row in TABLE if row.gone for name in row.options()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["--model_dir", "--tp_size", "--nonsense", "--", ""])
def test_no_advice_on_anything_else(name: str) -> None:
    assert advice(name) is None


def test_options_that_advice_names_are_ours() -> None:
    for row in TABLE:
        assert OURS.issuperset(Row(old=row.here, here="").options())
