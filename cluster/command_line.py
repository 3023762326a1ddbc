"""A command that says more about a mistaken command line than that it is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer._click.exceptions import NoSuchOption

from builders.errors import UserError
from cluster.completion import Command, normalize
from cluster.migration import advice


class StrictCommand(Command):
    """Refuses empty values, and tells who gives an option of the old scripts what became of it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # else a shell asks how the line may go on
            _refuse_empty(args)
        try:
            return super().parse_args(ctx, args)
        except NoSuchOption as error:
            told = advice(f"--{normalize(error.option_name.lstrip('-'))}")
            if told is None:
                raise
            raise NoSuchOption(error.option_name, f"{error.message}; {told}", ctx=ctx) from error


def _refuse_empty(args: Sequence[str]) -> None:
    """A variable that a script did not set; as a path it would be the current folder."""
    for before, word in zip(["", *args], args, strict=False):
        name, equals, value = word.partition("=")
        if equals and not value and word.startswith("--"):
            raise UserError(f"{name}='': is empty; give a value, or leave the option out")
        if not word:
            name = f"{before}=''" if before.startswith("-") else "an argument"
            raise UserError(f"{name}: is empty; give a value, or leave it out")
