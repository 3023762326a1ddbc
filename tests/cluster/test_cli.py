"""The command as users start it: a real process, its exit code, and what it prints where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import cluster.inspect
from builders.errors import ArtifactError, WorkerError
from cluster import cli
from tests.tiny import save_llama

ROOT = Path(__file__).parent.parent.parent


def rankforge(*args: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """`python -m cluster`, which is the command without an installation."""
    command = [sys.executable, "-m", "cluster", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def one_line_error(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def test_convert_then_inspect_as_json(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    made = rankforge(
        "convert", "--model-dir", model, "--output_dir", tmp_path / "out", "--tp-size", 2, "--json"
    )
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["num_ranks"] == 2 and not result["reused"]
    seen = rankforge("inspect", tmp_path / "out", "--verify", "--json")
    found = json.loads(seen.stdout)
    assert found["key"] == result["key"] and found["verified"]
    assert [rank["heads"] for rank in found["ranks"]] == [2, 2]
    progress = [json.loads(line) for line in made.stderr.splitlines()]
    assert progress[-1]["done"] == progress[-1]["total"] > 0


def test_inspect_for_people(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rankforge("convert", "--model_dir", save_llama(tmp_path / "model"), "--output_dir", out, "--pp_size", 2)
    text = rankforge("inspect", out).stdout
    for word in ("llama", "pp 2", "model.safetensors", "tensors"):
        assert word in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["convert", "--model_dir", "/nowhere/at/all", "--output_dir", "x"], "/nowhere/at/all"),
        (["convert", "--model_dir", "x"], "--output_dir"),
        (["convert", "--model_dir", "x", "--output_dir", "y", "--dtype", "nan"], "'nan' is not one of"),
        (["convert", "--model_dir", "x", "--output_dir", "y", "--workers", "0"], "--workers"),
        (["convert", "--model_dir", "x", "--output_dir", "y", "--moe_tp_mode", "3"], "--moe_tp_mode"),
        (["convert", "--nonsense"], "--nonsense"),
        (["convert", "--model_dir", "", "--output_dir", "y"], "--model_dir='': is empty"),
        (["convert", "--model_dir", "x", "--output-dir="], "--output-dir='': is empty"),
        (["inspect", ""], "an argument: is empty"),
        (["convert", "--tp-sizes=2"], "No such option: --tp_sizes (Possible options: "),
        (["convert", "--meta-ckpt-dir", "x"], "No such option: --meta_ckpt_dir; use --model_dir DIR"),
        (["convert", "--moe_ep_size=4"], "No such option: --moe_ep_size; use --ep_size N"),
        (["build", "--gemm_plugin", "auto"], "No such option: --gemm_plugin; not needed: there are no plug"),
        (["transmogrify"], "transmogrify"),
        (["inspect", "/nowhere/at/all"], "not a rankforge-checkpoint"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-2:]) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(args: list[str], words: str) -> None:
    assert words in one_line_error(rankforge(*args))


@pytest.mark.parametrize(
    ("content", "count"),
    [({}, 0), ({"lm_head.weight": torch.zeros(4, 4, dtype=torch.int8), "epoch": torch.tensor(3)}, 2)],
    ids=["empty", "integers"],
)
def test_weights_that_are_none(content: dict[str, torch.Tensor], count: int, tmp_path: Path) -> None:
    """The dtype is left to them, and they have none to keep."""
    model = save_llama(tmp_path / "model")
    (model / "model.safetensors").unlink()
    torch.save(content, model / "pytorch_model.bin")
    result = rankforge("convert", "--model_dir", model, "--output_dir", tmp_path / "out", "--dtype", "auto")
    assert f"none of its {count} tensors is floating point" in one_line_error(result)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="takes a device that is always full")
def test_a_full_standard_output_is_one_line(tmp_path: Path) -> None:
    save_llama(tmp_path / "model")
    words = ("convert", "--model_dir", tmp_path / "model", "--output_dir", tmp_path / "out")
    command = [sys.executable, "-m", "cluster", *map(str, words)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert last.startswith("error: standard output: cannot be written (No space left on device); ")


def test_version_and_help() -> None:
    assert rankforge("--version").stdout.startswith("rankforge ")
    text = rankforge("--help").stdout
    for command in ("convert", "inspect", "demo", "--install-completion"):
        assert command in text


def test_installed_command_is_the_same() -> None:
    (command,) = entry_points(group="console_scripts", name="rankforge")
    assert command.load() is cli.main


def test_bare_command_shows_help_and_no_empty_error() -> None:
    result = rankforge()
    assert (result.returncode, result.stderr) == (2, "")
    assert "convert" in result.stdout


SCRIPTS = {"bash": "complete -o default", "zsh": "#compdef", "fish": "complete --command"}
SCRIPTS |= {"powershell": "Register-ArgumentCompleter", "pwsh": "Register-ArgumentCompleter"}
FAR_FROM_ANY_SHELL = """
import os, sys
for _ in range(12):
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""More ancestors that are no shell than a search for one goes through."""
PARENTS = {
    "sh": ["sh", "-c", '"$0" "$@"; exit $?', sys.executable],
    "none": [sys.executable, "-c", FAR_FROM_ANY_SHELL],
}


def started_by(parent: str, *args: str) -> subprocess.CompletedProcess[str]:
    """The command with this shell above it."""
    command = [*PARENTS[parent], "-m", "cluster", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("option", ["--show-completion", "--show_completion"])
def test_completion_script_of_a_named_shell(option: str, parent: str) -> None:
    result = started_by(parent, option, "bash")
    assert (result.returncode, result.stderr) == (0, "")
    assert "_RANKFORGE_COMPLETE=complete_bash" in result.stdout


@pytest.mark.parametrize("shell", SCRIPTS)
def test_completion_script_is_the_shells_own(shell: str) -> None:
    assert SCRIPTS[shell] in rankforge(f"--show-completion={shell}").stdout


@pytest.mark.parametrize(("parent", "word"), [("sh", "the shell is sh"), ("none", "no shell")])
def test_completion_of_a_shell_that_is_not_named(parent: str, word: str) -> None:
    message = one_line_error(started_by(parent, "--show-completion"))
    assert word in message and "zsh" in message


def test_completion_finds_the_shell_in_use() -> None:
    line = f'{sys.executable} -m cluster --show-completion; exit "$?"'
    result = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "complete_bash" in result.stdout


@pytest.mark.parametrize("option", ["--show-completion", "--install-completion"])
def test_completion_of_an_unknown_shell_is_refused(option: str) -> None:
    assert "'tcsh' is not one of bash" in one_line_error(rankforge(option, "tcsh"))


def test_installing_completion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rankforge("--install-completion", "fish").returncode == 0
    (script,) = tmp_path.rglob("rankforge.fish")
    assert "_RANKFORGE_COMPLETE" in script.read_text()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("con", ["convert"]),
        ("convert --tp", ["--tp_size"]),
        ("build --tp-", ["--tp-size"]),
        ("build --tokens-per", ["--tokens-per-block"]),
        ("build --tokens_per", ["--tokens_per_block"]),
        ("convert --use-par", ["--use-parallel-embedding"]),
        ("convert --use-parallel_e", ["--use-parallel_embedding"]),
        ("convert --load-format r", ["random"]),
        ("--show-c", ["--show-completion"]),
        ("--show_c", ["--show_completion"]),
        ("--show", ["--show-completion"]),
        ("--show-completion z", ["zsh"]),
        ("store prune --max-b", ["--max-bytes"]),
        ("convert --load_format ", ["auto", "random"]),
        ("convert --dtype b", ["bfloat16"]),
    ],
)
def test_completion_offers(words: str, offered: list[str]) -> None:
    line = f"rankforge {words}"
    shell = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_RANKFORGE_COMPLETE": "complete_bash"}
    result = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'rankforge'; from cluster.cli import main; main()"],
        cwd=ROOT,
        env={**os.environ, **shell},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == offered


@pytest.mark.parametrize(
    ("error", "code", "stderr"),
    [
        (ArtifactError("x: is\n  damaged"), 2, "error: x: is damaged\n"),
        (WorkerError("rank 3 died"), 1, "error: rank 3 died\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_exit_codes(
    error: BaseException,
    code: int,
    stderr: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_with(error, monkeypatch) == code
    assert capsys.readouterr() == ("", stderr)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_with(ZeroDivisionError("a bug"), monkeypatch)


def run_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The exit code of a command whose work raises this."""

    def fail(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(cluster.inspect, "inspect", fail)
    monkeypatch.setattr(sys, "argv", ["rankforge", "inspect", "x"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code


def test_starting_imports_nothing_slow() -> None:
    check = "import sys, cluster.cli; print({'torch', 'transformers', 'ray'} & sys.modules.keys())"
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize("command", ["convert", "build"])
@pytest.mark.parametrize("option", ["--tp-size", "--pp_size", "--ep_size"])
def test_sizes_out_of_reach_are_one_line(command: str, option: str, tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model")
    args = (command, "--model_dir", model, "--output_dir", tmp_path / "out", option, 10**12)
    assert "=1000000000000: must be at most" in one_line_error(rankforge(*args))
