"""The command line: what is slow to import is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.exceptions import TyperException

from builders.errors import RankforgeError, UserError
from cluster.build_options import BuildOptions
from cluster.completion import Group, install_completion, normalize, show_completion
from cluster.convert_options import ConvertOptions
from cluster.demo_options import DemoOptions
from cluster.inspect_options import InspectOptions
from cluster.interrupts import HEARD, leave
from cluster.jobs_options import JobOptions, JobsOptions
from cluster.key_commands import keys
from cluster.options import command
from cluster.progress import stderr_reporter
from cluster.run_options import RunOptions
from cluster.serve_options import ServeOptions
from cluster.store_options import PinOptions, PruneOptions, StoreOptions
from cluster.summarize_options import SummarizeOptions

app = typer.Typer(
    name="rankforge",
    help="Convert LLM checkpoints to one shard per rank, build engines, and serve them.",
    cls=Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": normalize},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rankforge {version('rankforge')}")
        raise typer.Exit()


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    _install: Annotated[str | None, install_completion] = None,
    _show: Annotated[str | None, show_completion] = None,
) -> None:
    pass


@command(app, ConvertOptions, name="convert")
def convert(options: ConvertOptions) -> None:
    """Turn a checkpoint into one shard per rank, for any tensor, pipeline and expert parallel layout."""
    from cluster.convert import convert as run

    result = run(options, stderr_reporter(as_json=options.json))
    _print(result.to_json(), result.to_text(), as_json=options.json)


@command(app, BuildOptions, name="build")
def build(options: BuildOptions) -> None:
    """Build one engine per rank from a checkpoint, a model or a configuration; nothing is made twice."""
    from cluster.build import build as run

    result = run(options, stderr_reporter(as_json=options.json))
    _print(result.to_json(), result.to_text(), as_json=options.json)


@command(app, RunOptions, name="run")
def run(options: RunOptions) -> None:
    """Go on with texts or tokens: many at once, on the ranks of an engine, which start by themselves."""
    from cluster.run import run as generate

    result = generate(options, sys.stdout, sys.stderr)
    if options.json or result.to_text():
        _print(result.to_json(), result.to_text(), as_json=options.json)


@command(app, ServeOptions, name="serve")
def serve(options: ServeOptions) -> None:
    """Serve models to OpenAI's clients: converts and builds what is missing, and stays until interrupted."""
    from cluster.serve import serve as run

    run(options, sys.stdout, sys.stderr)


@command(app, SummarizeOptions, name="summarize")
def summarize(options: SummarizeOptions) -> None:
    """Summarize articles with an engine and with Transformers: ROUGE, speed and perplexity side by side."""
    from cluster.run_choice import idle_notes
    from cluster.summarize import summarize as run
    from cluster.summarize_checks import check_accuracy

    for note in idle_notes(options):
        print(note, file=sys.stderr)
    result = run(options, stderr_reporter(as_json=options.json))
    _print(result.to_json(), result.to_text(), as_json=options.json)
    if options.check_accuracy:
        check_accuracy(options, result.columns[0])


@command(app, InspectOptions, name="inspect")
def inspect(options: InspectOptions) -> None:
    """Show what a checkpoint or an engine holds: model, layout, limits, size of every rank, origin."""
    from builders.config_file import format_of
    from builders.engine_manifest import EngineManifest
    from cluster.inspect import inspect as look
    from cluster.inspect import show
    from cluster.inspect_engine import inspect_engine, show_engine

    is_engine = format_of(options.folder) == EngineManifest.format.name
    found = (inspect_engine if is_engine else look)(options.folder, verify=options.verify)
    if options.json:
        _print(found, "", as_json=True)
    else:
        (show_engine if is_engine else show)(found, Console())


store = typer.Typer(
    name="store", help="Look after the store of built programs.", cls=Group, no_args_is_help=True
)
app.add_typer(store)


@command(store, StoreOptions, name="list")
def store_list(options: StoreOptions) -> None:
    """Show every entry, the one used last first."""
    from cluster.store import listing, show

    entries = listing(options.store_dir)
    if options.json:
        _print({"entries": entries}, "", as_json=True)
    else:
        show(entries, Console())


@command(store, StoreOptions, name="verify")
def store_verify(options: StoreOptions) -> None:
    """Hash every file and compare; exit code 2 when anything is damaged."""
    from cluster.store import verify

    found = verify(options.store_dir)
    damaged = {key: problems for key, problems in found.items() if problems}
    text = "\n".join(f"{key[:16]}: {'; '.join(problems)}" for key, problems in damaged.items())
    _print(
        {"damaged": damaged, "sound": len(found) - len(damaged)}, text or "all sound", as_json=options.json
    )
    if damaged:
        raise typer.Exit(2)


@command(store, PruneOptions, name="prune")
def store_prune(options: PruneOptions) -> None:
    """Evict the least recently used entries; those that are pinned or in use stay."""
    from cluster.store import prune

    done = prune(options.store_dir, options.max_bytes, options.min_age)
    text = f"evicted {len(done['evicted'])} entries of {done['freed_bytes']} bytes, kept {done['kept_bytes']}"
    if done["garbage_bytes"]:
        text += f", removed {done['garbage_bytes']} bytes of unfinished uploads"
    _print(done, text, as_json=options.json)


@command(store, PinOptions, name="pin")
def store_pin(options: PinOptions) -> None:
    """Keep an entry, whatever is pruned and whatever limit a build has."""
    from cluster.store import pin

    print(f"pinned {pin(options.store_dir, options.key)}")


@command(store, PinOptions, name="unpin")
def store_unpin(options: PinOptions) -> None:
    """Let an entry be pruned again."""
    from cluster.store import unpin

    print(f"unpinned {unpin(options.store_dir, options.key)}")


jobs = typer.Typer(
    name="jobs", help="Conversions and builds that a store knows of.", cls=Group, no_args_is_help=True
)
app.add_typer(jobs)


@command(jobs, JobsOptions, name="list")
def jobs_list(options: JobsOptions) -> None:
    """Show every job, the one begun last first: what is done, what failed, and whether its driver lives."""
    from cluster.job_commands import jobs as find
    from cluster.job_commands import show

    found = find(options.store_dir)
    if options.json:
        listed = [{**record.to_json(), "state": record.state_now} for record in found]
        _print({"jobs": listed}, "", as_json=True)
    else:
        show(found, Console())


@command(jobs, JobOptions, name="follow")
def jobs_follow(options: JobOptions) -> None:
    """Show how far a job is, from any machine that sees the store, until it is over."""
    from cluster.job_commands import follow

    record = follow(options.store_dir, options.job, stderr_reporter(as_json=options.json))
    _print(record.to_json(), f"{record.id}: {record.state_now}", as_json=options.json)


@command(jobs, JobOptions, name="cancel")
def jobs_cancel(options: JobOptions) -> None:
    """Stop a job's workers, and wait for that; what is done stays in the store."""
    from cluster.job_commands import cancel

    record = cancel(options.store_dir, options.job)
    _print(record.to_json(), f"{record.id}: {record.state_now}", as_json=options.json)


app.add_typer(keys)


@command(app, DemoOptions, name="demo")
def demo(options: DemoOptions) -> None:
    """Convert, build and serve the tiny chat model that comes with the project, and talk to it."""
    from cluster.demo import demo as run

    run(options, Console())


def _print(result: dict[str, Any], text: str, *, as_json: bool) -> None:
    try:
        print(json.dumps(result, indent=2) if as_json else text, flush=True)
    except BrokenPipeError:  # who reads has enough
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes once more at the end
        raise UserError(
            f"standard output: cannot be written ({error.strerror}); send it elsewhere, then run again"
        ) from error


def main() -> None:
    """Run a command; what the user can fix is one line and exit code 2."""
    HEARD.listen()
    try:
        sys.exit(app(prog_name="rankforge", standalone_mode=False))
    except RankforgeError as error:
        _fail(str(error), 2 if isinstance(error, UserError) else 1)
    except typer.Abort:
        sys.exit(130)
    except TyperException as error:
        if not error.format_message():  # a bare `rankforge` has just printed its help
            sys.exit(2)
        _fail(error.format_message(), 2)
    finally:
        with suppress(KeyboardInterrupt):  # heard at the very end
            HEARD.end()
        if HEARD.code is not None:  # whatever a library made of it on its way here
            leave(HEARD.code)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
