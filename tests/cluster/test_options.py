"""Options come from dataclass fields, and from nowhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster.convert_options import ConvertOptions
from cluster.demo_options import DemoOptions
from cluster.inspect_options import InspectOptions
from cluster.options import command, option

ALL = (ConvertOptions, InspectOptions, DemoOptions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """An example."""

    tp_size: int = option(1, help="Ranks.", least=1)
    dry_run: bool = option(False, help="Do nothing.")
    skip_field: list[str] = option([], help="Names.")


def run(*args: str) -> tuple[int, list[Sizes]]:
    """Parse a command line of the example."""
    app, seen = typer.Typer(), []
    command(app, Sizes)(seen.append)
    return CliRunner().invoke(app, args).exit_code, seen


@pytest.mark.parametrize("spelling", ["--tp_size", "--tp-size"])
def test_dash_and_underscore_are_one(spelling: str) -> None:
    assert run(spelling, "4", "--dry-run") == (0, [Sizes(tp_size=4, dry_run=True)])


def test_repeated_option_is_a_list() -> None:
    assert run("--skip-field", "a", "--skip_field", "b")[1][0].skip_field == ["a", "b"]


def test_defaults_are_the_fields() -> None:
    assert run() == (0, [Sizes()])


def test_bounds_are_checked() -> None:
    assert run("--tp_size", "0")[0] == 2


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.__name__)
def test_every_option_explains_itself(options: type[Any]) -> None:
    for field in dataclasses.fields(options):
        text = field.metadata["help"]
        assert text.endswith(".") and len(text) > 12, field.name


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.__name__)
def test_every_field_is_in_help_once(options: type[Any]) -> None:
    app = typer.Typer()
    command(app, options)(lambda _options: None)
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for field in dataclasses.fields(options):
        if not field.metadata.get("positional"):
            assert text.count(f"--{field.name} ") == 1, field.name
