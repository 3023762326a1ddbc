"""The commands of `rankforge keys`."""

from __future__ import annotations

import json

import typer
from rich.console import Console

from cluster.completion import Group
from cluster.key_options import AddKeyOptions, KeysOptions, RemoveKeyOptions
from cluster.options import command

keys = typer.Typer(name="keys", help="Say who may use a server.", cls=Group, no_args_is_help=True)


@command(keys, AddKeyOptions, name="add")
def keys_add(options: AddKeyOptions) -> None:
    """Make a key and show it, once: the file has its hash alone."""
    from cluster.keys import add

    key = add(options)
    print(json.dumps({"name": options.name, "key": key}) if options.json else key)


@command(keys, KeysOptions, name="list")
def keys_list(options: KeysOptions) -> None:
    """Show whose keys there are, and what they may use."""
    from cluster.keys import listing, show

    found = listing(options.keys_file)
    if options.json:
        print(json.dumps({"keys": found}, indent=2))
    else:
        show(found, Console())


@command(keys, RemoveKeyOptions, name="remove")
def keys_remove(options: RemoveKeyOptions) -> None:
    """Take a key back: servers that run refuse it within a second."""
    from cluster.keys import remove

    print(f"removed {remove(options.keys_file, options.name)}")
