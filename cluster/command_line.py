"""A command that says more about a mistaken command line than that it is one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from typer._click.exceptions import NoSuchOption

from builders.errors import UserError
from cluster.completion import Command, normalize
from cluster.migration import advice


class StrictCommand(Command):
    """Takes several values after one option, refuses empty ones, and tells who gives an option of the old
    scripts what became of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # else a shell asks how the line may go on
            _refuse_empty(args)
            args = _spread(args, {name for param in self.params if _is_list(param) for name in param.opts})
        try:
            return super().parse_args(ctx, args)
        except NoSuchOption as error:
            told = advice(f"--{normalize(error.option_name.lstrip('-'))}")
            if told is None:
                raise
            raise NoSuchOption(error.option_name, f"{error.message}; {told}", ctx=ctx) from error


def _is_list(param: Any) -> bool:
    return bool(param.param_type_name == "option" and param.multiple)


def _spread(args: Sequence[str], lists: Collection[str]) -> list[str]:
    """`--input_text a b` as `--input_text a --input_text b`, for options that may be given several times."""
    done: list[str] = []
    current, awaits_value = None, False
    for word in args:
        if awaits_value:  # whatever it begins with
            awaits_value = False
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            current = name if f"--{normalize(name.lstrip('-'))}" in lists else None
            awaits_value = current is not None and not equals
        elif current:
            done.append(current)
        done.append(word)
    return done


def _refuse_empty(args: Sequence[str]) -> None:
    """A variable that a script did not set; as a path it would be the current folder."""
    for before, word in zip(["", *args], args, strict=False):
        name, equals, value = word.partition("=")
        if equals and not value and word.startswith("--"):
            raise UserError(f"{name}='': is empty; give a value, or leave the option out")
        if not word:
            name = f"{before}=''" if before.startswith("-") else "an argument"
            raise UserError(f"{name}: is empty; give a value, or leave it out")
