"""Command line options from frozen dataclasses: a field is the only place that declares an option."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.command_line import StrictCommand
from cluster.completion import normalize


def option(
    default: Any = dataclasses.MISSING, *, help: str, group: str = "Options", least: float | None = None,
    most: float | None = None, also: str | None = None,
) -> Any:  # fmt: skip
    """A field that is an option: default, help text, place in --help, bounds, and another name."""
    metadata = {"help": help, "rich_help_panel": group, "min": least, "max": most, "also": also}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def optional(options: type[Any], name: str) -> Any:
    """An option that another command requires and this one does not: its one declaration is there."""
    (found,) = (field for field in declared(options) if field.name == name)
    return dataclasses.field(default=None, metadata=found.metadata)


def same(options: type[Any], name: str) -> Any:
    """An option that another command has too: its one declaration is there."""
    (found,) = (field for field in declared(options) if field.name == name)
    return dataclasses.field(default=found.default, metadata=found.metadata)


def given() -> Any:
    """A field that hears which options stood on the command line; no option itself."""
    return dataclasses.field(default=frozenset(), metadata={"given": True})


def argument(*, help: str) -> Any:
    """A field that is given by its place, not by a name."""
    return dataclasses.field(metadata={"help": help, "positional": True})


def command(app: typer.Typer, options: type[Any], **settings: Any) -> Callable[[Callable[[Any], None]], None]:
    """Register a function of one options object as a command with an option for every field."""

    def register(function: Callable[[Any], None]) -> None:
        @functools.wraps(function)
        def run(context: typer.Context, **values: Any) -> None:
            function(options(**values, **_heard(options, context)))

        context_first = inspect.Parameter("context", _BY_NAME, annotation=typer.Context)
        signature = inspect.Signature([context_first, *parameters(options)])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {}
        shared = {"token_normalize_func": normalize, "help_option_names": ["-h", "--help"]}
        app.command(cls=StrictCommand, context_settings=shared, **settings)(run)

    return register


def _heard(options: type[Any], context: typer.Context) -> dict[str, frozenset[str]]:
    sources = {name: context.get_parameter_source(name) for name in context.params}
    written = frozenset(name for name, source in sources.items() if source and source.name == "COMMANDLINE")
    return {field.name: written for field in dataclasses.fields(options) if field.metadata.get("given")}


def declared(options: type[Any]) -> list[dataclasses.Field[Any]]:
    """The fields that are options or arguments."""
    return [field for field in dataclasses.fields(options) if not field.metadata.get("given")]


def parameters(options: type[Any]) -> Sequence[inspect.Parameter]:
    """One keyword parameter a field, as Typer reads them; required ones come first."""
    hints = typing.get_type_hints(options)
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    fields = sorted(declared(options), key=lambda field: (field.default, field.default_factory) != missing)
    return [_parameter(field, hints[field.name]) for field in fields]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    settings = {name: value for name, value in field.metadata.items() if value is not None}
    if settings.pop("positional", False):
        info = typer.Argument(show_default=False, **settings)
    else:
        names = [f"--{name}" for name in (field.name, settings.pop("also", None)) if name]
        info = typer.Option(*names, metavar=_METAVARS.get(hint), show_default=_has_default(field), **settings)
    return inspect.Parameter(field.name, _BY_NAME, default=_default(field), annotation=Annotated[hint, info])


_BY_NAME = inspect.Parameter.KEYWORD_ONLY

_METAVARS: Mapping[Any, str] = {
    bool: "",
    int: "N",
    int | None: "N",
    float: "X",
    str: "TEXT",
    str | None: "TEXT",
    Path: "PATH",
    Path | None: "PATH",
    list[str]: "TEXT ...",
}
"""Short, so that names and help texts get the room."""


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return not any(field.default is nothing for nothing in (dataclasses.MISSING, None, False))


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
