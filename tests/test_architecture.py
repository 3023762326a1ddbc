"""The shape of the code, as rules that can fail: layers, forbidden imports, sizes, names."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("builders", "actors", "cluster", "ui")
"""From the lowest up; a layer imports itself and those before it."""

FORBIDDEN = {
    "builders": {"ray", "fastapi", "gradio"},
    "actors": {"fastapi", "gradio"},
    "cluster": {"gradio"},
    "ui": set(),
}
CONTROL = (
    "beam_search changes drafts kv_cache messages residents sampling_params scheduler sequences texts".split()
)
NO_TORCH = {f"actors/{name}.py": {"torch", "ray"} for name in CONTROL}
ENVIRONMENT = {"cluster/settings.py", "actors/rank_host.py"}  # the second: what CUDA was given
ENVIRONMENT_NAMES = ("environ", "environb", "getenv", "getenvb", "putenv", "unsetenv")
VAGUE_NAMES = {"utils", "helpers", "common", "manager"}
DEPENDENCIES = set(
    "cupy datasets fastapi gradio huggingface_hub modelopt msgspec numpy ray rich safetensors tensorrt "
    "tensorrt_rtx tokenizers torch transformers triton typer yaml zmq".split()
)
FILES = sorted(file for layer in LAYERS for file in (ROOT / layer).rglob("*.py"))


def problems(name: str, source: str) -> list[str]:
    """What is wrong with a file of the four packages."""
    tree = ast.parse(source)
    layer = name.split("/")[0]
    found = [f"imports {module}" for module in imports(tree) if not allowed(name, layer, module)]
    found += [what for node in ast.walk(tree) if (what := bad_node(name, node))]
    if not ast.get_docstring(tree):
        found.append("no docstring")
    if source.count("\n") > 300:
        found.append("over 300 lines")
    if {part.removesuffix(".py") for part in name.split("/")} & (VAGUE_NAMES | DEPENDENCIES):
        found.append("a name that says nothing, or a dependency's")
    if name in ENVIRONMENT and len(names := environment_names(tree)) > 10:
        found.append(f"reads {len(names)} environment names")
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, those inside functions too, and those imported by a name in quotes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module in LAYERS and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from quoted(node.args[:1])


def called(node: ast.Call) -> str | None:
    """The last name of what is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def quoted(nodes: list[ast.expr]) -> Iterator[str]:
    """The strings among these."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def environment_names(tree: ast.AST) -> set[str]:
    """The strings that look like environment names."""
    words = quoted([node for node in ast.walk(tree) if isinstance(node, ast.Constant)])
    return {word for word in words if re.fullmatch(r"[A-Z][A-Z0-9_]+", word)}


def allowed(name: str, layer: str, module: str) -> bool:
    top = module.split(".")[0]
    if module.startswith("."):
        return False
    if top in LAYERS:
        if layer == "ui":
            return top == "ui" or module == "cluster.client"
        return LAYERS.index(top) <= LAYERS.index(layer)
    return top not in FORBIDDEN[layer] | NO_TORCH.get(name, set())


def bad_node(name: str, node: ast.AST) -> str | None:
    if isinstance(node, ast.Global):
        return "global statement"
    if isinstance(node, ast.ExceptHandler) and is_broad(node.type):
        return "broad except"
    if isinstance(node, ast.Assert) and node.msg is None:
        return "assert without a message"
    return "reads the environment" if name not in ENVIRONMENT and reads_environment(node) else None


def reads_environment(node: ast.AST) -> bool:
    """Whatever `os` is called here."""
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        return any(alias.name in ENVIRONMENT_NAMES for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT_NAMES


def is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(is_broad(kind) for kind in caught.elts)
    return caught is None or is_name(caught, "Exception", "BaseException")


def is_name(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file(file: Path) -> None:
    assert problems(str(file.relative_to(ROOT)), file.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("builders/x.py", "def f():\n    import ray", "imports ray"),
        ("builders/x.py", "from actors.scheduler import Scheduler", "imports actors.scheduler"),
        ("actors/x.py", "def f():\n    from cluster import cli", "imports cluster.cli"),
        ("cluster/x.py", "import gradio as gr", "imports gradio"),
        ("ui/x.py", "from actors import scheduler", "imports actors.scheduler"),
        ("ui/x.py", "from cluster.cli import main", "imports cluster.cli"),
        ("actors/scheduler.py", "import torch", "imports torch"),
        ("actors/kv_cache.py", "def f():\n    import ray", "imports ray"),
        ("builders/x.py", "import importlib\nimportlib.import_module('ray.util')", "imports ray.util"),
        ("actors/x.py", "f = __import__('fastapi')", "imports fastapi"),
        ("builders/x.py", "from . import y", "imports ."),
        ("builders/x.py", "import os\nos.environ['X']", "reads the environment"),
        ("actors/x.py", "import os\nos.getenv('X')", "reads the environment"),
        ("actors/x.py", "import os as o\no.environ", "reads the environment"),
        ("actors/x.py", "def f():\n    from os import getenv as g", "reads the environment"),
        (
            "cluster/settings.py",
            f"NAMES = {[f'RANKFORGE_{n}' for n in range(11)]}",
            "reads 11 environment names",
        ),
        ("builders/x.py", "def f():\n    global y", "global statement"),
        ("builders/x.py", "try:\n    f()\nexcept Exception:\n    pass", "broad except"),
        ("builders/x.py", "try:\n    f()\nexcept:\n    pass", "broad except"),
        ("builders/x.py", "try:\n    f()\nexcept (OSError, Exception):\n    pass", "broad except"),
        ("builders/x.py", "assert x", "assert without a message"),
        ("builders/utils.py", "x = 1", "a name that says nothing, or a dependency's"),
        ("builders/tensorrt/x.py", "x = 1", "a name that says nothing, or a dependency's"),
        ("builders/x.py", "x = 1\n" * 301, "over 300 lines"),
    ],
)
def test_rule_can_fail(name: str, line: str, problem: str) -> None:
    assert problems(name, f'"""Doc."""\n{line}\n') == [problem]


def test_missing_docstring_is_seen() -> None:
    assert problems("builders/x.py", "x = 1\n") == ["no docstring"]


def test_allowed_imports_are_allowed() -> None:
    assert problems("ui/x.py", '"""Doc."""\nfrom cluster.client import Client\nimport gradio\n') == []
    assert problems("ui/x.py", '"""Doc."""\nfrom cluster import client\n') == []
    assert problems("cluster/settings.py", '"""Doc."""\nimport os\nHOME = os.environ["HOME"]\n') == []
    assert problems("cluster/x.py", '"""Doc."""\nimport ray\nfrom builders.spec import ModelSpec\n') == []


def test_every_file_is_in_the_architecture_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    folders = "families sources store kernels trt fuse cuda communicators demo_maker".split()
    missing = [
        file.name
        for file in FILES
        if file.name not in page
        and not file.name.startswith("__")
        and not file.name.endswith("_options.py")
        and file.parent.name not in folders
    ]
    assert missing == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_test_files_have_names_of_their_own() -> None:
    """Folders of tests that are no packages: pytest takes two of a name for one."""
    names = Counter(file.name for file in ROOT.glob("tests/**/test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []
