"""Nothing that others write is unpickled or run: no package calls what would, no socket does."""

from __future__ import annotations

import ast
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import zmq

from actors.messages import Beat, Order, StepResult, decode, encode
from actors.wires import Head, Tail
from tests.test_architecture import FILES, ROOT, called, imports

UNPICKLERS = set("pickle cloudpickle dill marshal shelve joblib".split())
ERRORS_ONLY = {"builders/sources/stored.py": "UnpicklingError"}
"""Files that import one of these for the name of an error."""

CALLS = set(
    "send_pyobj recv_pyobj broadcast_object_list all_gather_object gather_object scatter_object_list "
    "send_object_list recv_object_list unsafe_load full_load eval exec".split()
)
"""Of ZeroMQ, torch.distributed, YAML and Python: they make objects or code of what they get. A module's own
`.eval()` takes nothing."""

SAFELY = {"torch": ("weights_only", True), "numpy": ("allow_pickle", False), "np": ("allow_pickle", False)}
"""`load` of these only with this said."""


def problems(name: str, source: str) -> list[str]:
    tree = ast.parse(source)
    found = [
        f"imports {module}" for module in imports(tree) if module in UNPICKLERS and name not in ERRORS_ONLY
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (what := bad_call(node)):
            found.append(what)
        elif (
            isinstance(node, ast.Attribute)
            and owner(node) in UNPICKLERS
            and node.attr != ERRORS_ONLY.get(name)
        ):
            found.append(f"uses {owner(node)}.{node.attr}")
        elif (
            isinstance(node, ast.keyword) and node.arg == "trust_remote_code" and constant(node) is not False
        ):
            found.append("trust_remote_code")
    return found


def bad_call(node: ast.Call) -> str | None:
    called_name, module = called(node), owner(node.func)
    if called_name in CALLS and (node.args or node.keywords):
        return f"calls {called_name}"
    if called_name == "load" and module == "yaml":
        return "calls yaml.load"
    if called_name == "load" and module in SAFELY:
        said = {(one.arg, constant(one)) for one in node.keywords}
        return None if SAFELY[module] in said else f"calls {module}.load"
    return None


def constant(node: ast.keyword) -> object:
    """What an argument is, where it stands there."""
    return node.value.value if isinstance(node.value, ast.Constant) else node


def owner(node: ast.AST) -> str | None:
    """Of an attribute: the name before its dot."""
    return node.value.id if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file(file: Path) -> None:
    assert problems(str(file.relative_to(ROOT)), file.read_text()) == []


@pytest.mark.parametrize(
    ("name", "line", "problem"),
    [
        ("actors/x.py", "import pickle", "imports pickle"),
        ("builders/x.py", "def f():\n    from cloudpickle import loads", "imports cloudpickle"),
        ("builders/sources/stored.py", "import pickle\npickle.loads(x)", "uses pickle.loads"),
        ("builders/x.py", "torch.load(f)", "calls torch.load"),
        ("builders/x.py", "torch.load(f, weights_only=False)", "calls torch.load"),
        ("builders/x.py", "torch.load(f, weights_only=chosen)", "calls torch.load"),
        ("cluster/x.py", "np.load(f)", "calls np.load"),
        ("cluster/x.py", "yaml.load(f)", "calls yaml.load"),
        ("cluster/x.py", "yaml.unsafe_load(f)", "calls unsafe_load"),
        ("actors/x.py", "socket.recv_pyobj(0)", "calls recv_pyobj"),
        ("actors/x.py", "dist.broadcast_object_list([x])", "calls broadcast_object_list"),
        ("cluster/x.py", "eval(text)", "calls eval"),
        ("cluster/x.py", "AutoModel.from_pretrained(x, trust_remote_code=True)", "trust_remote_code"),
    ],
)
def test_rule_can_fail(name: str, line: str, problem: str) -> None:
    assert problems(name, line) == [problem]


def test_what_is_safe_passes() -> None:
    assert problems("builders/x.py", "torch.load(f, mmap=True, weights_only=True)\nmodel.eval()") == []
    assert problems("cluster/x.py", "np.load(f, allow_pickle=False)\nyaml.safe_load(f)") == []


class Harm:
    """Would make a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._marker,)


def test_sockets_of_a_group_unpickle_nothing(tmp_path: Path) -> None:
    harm, head = pickle.dumps(Harm(tmp_path / "harmed")), Head("127.0.0.1")
    endpoints = head.endpoints(same_node=False)
    tail = Tail(endpoints, 0)
    with zmq.Context() as context, context.socket(zmq.DEALER) as orders, context.socket(zmq.PUSH) as beats:
        for socket, address in ((orders, endpoints.orders), (beats, endpoints.beats)):
            socket.setsockopt(zmq.LINGER, 1000)
            socket.connect(address)
            socket.send(harm)
        honest = Beat(secret=endpoints.secret, rank=0, ready=True, done=0)
        beats.send(encode(honest))
        tail.send(b"answer")
        assert first(lambda: head.beats(0.1)) == [honest]
        assert first(head.receive) == b"answer"
        assert [head.receive() for _ in range(5)] == [None] * 5
    tail.close()
    head.close()
    assert not (tmp_path / "harmed").exists()


def first(listen: Callable[[], object]) -> object:
    """That is something."""
    deadline = time.monotonic() + 30
    while not (found := listen()):
        assert time.monotonic() < deadline, "nothing comes"
    return found


@pytest.mark.parametrize("kind", [Order, StepResult, Beat])
def test_messages_are_no_pickles(kind: type, tmp_path: Path) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(kind, pickle.dumps(Harm(tmp_path / "harmed")))
    assert not (tmp_path / "harmed").exists()
