"""Options come from dataclass fields, and from nowhere else."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cluster.build_options import BuildOptions
from cluster.convert_options import ConvertOptions
from cluster.demo_options import DemoOptions
from cluster.inspect_options import InspectOptions
from cluster.options import command, declared, given, option, optional, same
from cluster.run_options import RunOptions
from cluster.store_options import PinOptions, PruneOptions, StoreOptions
from cluster.summarize_options import SummarizeOptions

STORE = (StoreOptions, PruneOptions, PinOptions)
ALL = (ConvertOptions, BuildOptions, RunOptions, SummarizeOptions, InspectOptions, *STORE, DemoOptions)
SAMPLES: dict[Any, list[str]] = {
    bool: [],
    int: ["1"],
    int | None: ["1"],
    float: ["1"],
    str: ["x"],
    str | None: ["x"],
    Path: ["x"],
    Path | None: ["x"],
    list[str]: ["x"],
}
"""What may follow an option of each type; a choice takes its last."""
NAMED = [
    (options, field) for options in ALL for field in declared(options) if not field.metadata.get("positional")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """An example."""

    tp_size: int = option(1, help="Ranks.", least=1)
    dry_run: bool = option(False, help="Do nothing.")
    skip_field: list[str] = option([], help="Names.")
    seed: int = option(0, help="Of draws.", least=0, most=9, also="random_seed")
    given: frozenset[str] = given()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Another command's option, just as it is."""

    seed: int = same(Sizes, "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lenient:
    """Another command's required option, which this one can do without."""

    model_dir: str | None = optional(ConvertOptions, "model_dir")


def run(*args: str) -> tuple[int, list[Sizes]]:
    """Parse a command line of the example."""
    app, seen = typer.Typer(), list[Any]()
    command(app, Sizes)(seen.append)
    return CliRunner().invoke(app, args).exit_code, seen


@pytest.mark.parametrize("spelling", ["--tp_size", "--tp-size"])
def test_dash_and_underscore_are_one(spelling: str) -> None:
    code, (sizes,) = run(spelling, "4", "--dry-run")
    assert (code, sizes.tp_size, sizes.dry_run) == (0, 4, True)


def test_what_was_given_is_known_even_where_it_changes_nothing() -> None:
    assert run("--tp-size", "1", "--skip_field", "a")[1][0].given == {"tp_size", "skip_field"}
    assert run()[1][0].given == set()


def test_an_option_of_another_command_may_be_left_out() -> None:
    assert parse(Lenient, []) == [Lenient()] and parse(Lenient, ["--model_dir", "x"])[0].model_dir == "x"
    (field,) = dataclasses.fields(Lenient)
    assert field.metadata["help"].startswith("Hugging Face id")


def parse(options: type[Any], args: list[str]) -> list[Any]:
    """The options objects that a command line of one command gives."""
    app, seen = typer.Typer(), list[Any]()
    command(app, options)(seen.append)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    return seen


def required(options: type[Any], but: str) -> list[str]:
    """The shortest command line, less one option."""
    args, hints = [], typing.get_type_hints(options)
    for field in declared(options):
        missing = field.default is field.default_factory is dataclasses.MISSING
        if missing and field.name != but:
            value = sample(hints[field.name])
            args += value if field.metadata.get("positional") else [f"--{field.name}", *value]
    return args


def sample(hint: Any) -> list[str]:
    """What to write after an option of this type."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return [choices[-1]] if choices else SAMPLES[hint]


@pytest.mark.parametrize(
    ("options", "field"), NAMED, ids=lambda value: getattr(value, "__name__", getattr(value, "name", ""))
)
def test_both_spellings_of_every_option(options: type[Any], field: dataclasses.Field[Any]) -> None:
    value = sample(typing.get_type_hints(options)[field.name])
    rest = required(options, but=field.name)
    names = (f"--{field.name}", f"--{field.name.replace('_', '-')}")
    old, new = (parse(options, [*rest, name, *value]) for name in names)
    assert len(old) == 1 and old == new
    if value:
        joined = parse(options, [*rest, f"{names[1]}={value[0]}"])
        assert joined == old
    assert getattr(old[0], field.name) not in (None, False)


def test_values_keep_their_dashes() -> None:
    (given,) = parse(ConvertOptions, ["--model-dir", "a-b_c", "--output-dir", "d-e_f"])
    assert (given.model_dir, given.output_dir) == ("a-b_c", Path("d-e_f"))


def test_flags_take_no_value_in_help() -> None:
    app = typer.Typer()
    command(app, Sizes)(lambda _options: None)
    (line,) = [line for line in CliRunner().invoke(app, ["--help"]).output.splitlines() if "dry_run" in line]
    assert "bool" not in line and "Do nothing." in line


def test_repeated_option_is_a_list() -> None:
    assert run("--skip-field", "a", "--skip_field", "b")[1][0].skip_field == ["a", "b"]


@pytest.mark.parametrize("name", ["--skip_field", "--skip-field"])
def test_several_values_may_follow_one_option(name: str) -> None:
    assert run(name, "a", "b", "--tp-size", "2")[1] == [Sizes(skip_field=["a", "b"], tp_size=2, given=HEARD)]
    assert run(f"{name}=a", "b", "--tp-size", "2", "--skip_field", "-5", "c")[1][0].skip_field == [
        "a", "b", "-5", "c",
    ]  # fmt: skip
    assert run("--tp-size", "2", "3")[0] == run(name, "a", "--dry-run", "b")[0] == 2


HEARD = frozenset({"skip_field", "tp_size"})


def test_an_option_of_two_names_is_one() -> None:
    for name in ("--seed", "--random_seed", "--random-seed"):
        assert run(name, "3")[1][0].seed == 3
    assert run("--random_seed", "10")[0] == 2


def test_defaults_are_the_fields() -> None:
    assert run() == (0, [Sizes()])


def test_bounds_are_checked() -> None:
    assert run("--tp_size", "0")[0] == 2


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.__name__)
def test_every_option_explains_itself(options: type[Any]) -> None:
    for field in declared(options):
        text = field.metadata["help"]
        assert text.endswith(".") and len(text) > 12, field.name


def test_an_option_that_two_commands_have_is_one() -> None:
    assert Shared().seed == Sizes().seed
    (ours,), theirs = declared(Shared), {field.name: field for field in declared(Sizes)}
    assert ours.metadata == theirs["seed"].metadata


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.__name__)
def test_help_has_every_word(options: type[Any]) -> None:
    """What is in brackets would be taken for a style."""
    assert not [field.name for field in declared(options) if "[" in field.metadata["help"]]


def test_defaults_that_are_numbers_are_shown() -> None:
    app = typer.Typer()
    command(app, Sizes)(lambda _options: None)
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert text.count("[default: 0]") == text.count("[default: 1]") == 1 and text.count("[default: ") == 2


@pytest.mark.parametrize("options", ALL, ids=lambda options: options.__name__)
def test_every_field_is_in_help_once(options: type[Any]) -> None:
    app = typer.Typer()
    command(app, options)(lambda _options: None)
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    for field in declared(options):
        if not field.metadata.get("positional"):
            assert len(re.findall(f"--{field.name}[ ,]", text)) == 1, field.name
