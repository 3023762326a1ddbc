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
    default: Any = dataclasses.MISSING, *, help: str, group: str = "Options", least: int | None = None,
    most: int | None = None,
) -> Any:  # fmt: skip
    """A field that is an option: its default, its help text, its place in --help, its bounds."""
    metadata = {"help": help, "rich_help_panel": group, "min": least, "max": most}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def argument(*, help: str) -> Any:
    """A field that is given by its place, not by a name."""
    return dataclasses.field(metadata={"help": help, "positional": True})


def command(app: typer.Typer, options: type[Any], **settings: Any) -> Callable[[Callable[[Any], None]], None]:
    """Register a function of one options object as a command with an option for every field."""

    def register(function: Callable[[Any], None]) -> None:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            function(options(**values))

        run.__signature__ = inspect.Signature(parameters(options))  # type: ignore[attr-defined]
        run.__annotations__ = {}
        context = {"token_normalize_func": normalize, "help_option_names": ["-h", "--help"]}
        app.command(cls=StrictCommand, context_settings=context, **settings)(run)

    return register


def parameters(options: type[Any]) -> Sequence[inspect.Parameter]:
    """One keyword parameter a field, as Typer reads them."""
    hints = typing.get_type_hints(options)
    return [_parameter(field, hints[field.name]) for field in dataclasses.fields(options)]


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    settings = {name: value for name, value in field.metadata.items() if value is not None}
    if settings.pop("positional", False):
        info = typer.Argument(show_default=False, **settings)
    else:
        metavar = _METAVARS.get(hint)
        info = typer.Option(f"--{field.name}", metavar=metavar, show_default=_has_default(field), **settings)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=Annotated[hint, info]
    )


_METAVARS: Mapping[Any, str] = {
    bool: "",
    int: "N",
    int | None: "N",
    str: "TEXT",
    str | None: "TEXT",
    Path: "PATH",
    Path | None: "PATH",
    list[str]: "NAME",
}
"""Short, so that names and help texts get the room."""


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default not in (dataclasses.MISSING, None, False)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
