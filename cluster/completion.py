"""Shell completion: options in the spelling that was typed; scripts for a shell that is named or found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Literal, get_args

import typer
from typer._click.shell_completion import CompletionItem
from typer._completion_classes import completion_init
from typer.completion import install_callback, show_callback
from typer.core import TyperCommand, TyperGroup

from builders.errors import UserError

Shell = Literal["bash", "zsh", "fish", "powershell", "pwsh"]
_FOUND = "found"
"""The value of an option that stands without a shell: the one that started this process."""
_OPTIONS = ("--show_completion", "--install_completion")


def normalize(name: str) -> str:
    """`tp-size` and `tp_size` are one name."""
    return name.replace("-", "_")


def _normal(option: str) -> str:
    """The same for an option with its leading dashes."""
    name = option.lstrip("-")
    return "-" * (len(option) - len(name)) + normalize(name)


class _BothSpellings:
    """Offers `--tp-size` to who typed `--tp-`, and knows it as `--tp_size` when its value is asked for."""

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        return [_spelled(param) for param in params] if ctx.resilient_parsing else params

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        items: list[Any] = super().shell_complete(ctx, _normal(incomplete))  # type: ignore[misc]
        if not incomplete.startswith("-"):
            return items
        first = {_normal(item.value): item for item in reversed(items)}
        return [_typed(first[name], incomplete) for name in reversed(first)]


def _spelled(param: Any) -> Any:
    """A parameter for completion alone: parsing already takes both."""
    if param.param_type_name != "option":
        return param
    both = copy(param)
    dashed = [name[:2] + name[2:].replace("_", "-") for name in param.opts]
    both.opts = list(dict.fromkeys([*param.opts, *dashed, *map(_normal, param.opts)]))
    return both


def _typed(item: Any, incomplete: str) -> Any:
    """Goes on as the user began: what a shell inserts has to begin with what is there."""
    body, rest = incomplete.lstrip("-"), item.value[len(incomplete) :]
    if "-" in body:
        rest = rest.replace("_", "-")
    elif "_" in body:
        rest = rest.replace("-", "_")
    return CompletionItem(incomplete + rest, help=item.help)


class Command(_BothSpellings, TyperCommand):
    """A command whose options complete in both spellings."""


class Group(_BothSpellings, TyperGroup):
    """Commands, and the two options whose shell may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if ctx.parent else _with_shells(args))


def _with_shells(args: Sequence[str]) -> list[str]:
    """An option that stands alone gets the value that says so; only what precedes a command is looked at."""
    done: list[str] = []
    for at, word in enumerate(args):
        is_value = bool(done) and _normal(done[-1]) in _OPTIONS
        if not word.startswith("-") and not is_value:
            return [*done, *args[at:]]
        alone = at + 1 == len(args) or args[at + 1].startswith("-")
        done += [word, _FOUND] if _normal(word) in _OPTIONS and alone else [word]
    return done


def _callback(name: str, act: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, str | None], None]:
    def run(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> None:
        if value is not None and not ctx.resilient_parsing:
            act(ctx, param, _shell(name, value))

    return run


def _shell(option: str, value: str) -> str:
    shells = ", ".join(get_args(Shell))
    if value != _FOUND:
        if value not in get_args(Shell):
            raise UserError(f"{option}: '{value}' is not one of {shells}")
        return value
    found = _parent_shell()
    if found is None or found not in get_args(Shell):
        what = f"the shell is {found}, which has none" if found else "no shell started this"
        raise UserError(f"{option}: {what}; name one of {shells}")
    return found


def _parent_shell() -> str | None:
    import shellingham

    try:
        return str(shellingham.detect_shell()[0])
    except shellingham.ShellDetectionFailure:
        return None


def _complete_shell(incomplete: str) -> list[str]:
    return [shell for shell in get_args(Shell) if shell.startswith(incomplete)]


def _option(name: str, act: Callable[[Any, Any, Any], Any], help: str) -> Any:
    settings: Mapping[str, Any] = {"is_eager": True, "expose_value": False, "metavar": "[SHELL]"}
    return typer.Option(
        name, callback=_callback(name, act), help=help, autocompletion=_complete_shell, **settings
    )


show_completion = _option(
    "--show-completion", show_callback, "Print the completion script of a shell, the one in use by default."
)
install_completion = _option(
    "--install-completion", install_callback, "Install completion for a shell, the one in use by default."
)
completion_init()
