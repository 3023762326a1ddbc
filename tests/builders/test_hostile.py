"""Files from strangers: damaged, foreign or meant to harm, each is one clear line and nothing runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builders.convert import ConvertPlan, convert_rank
from builders.errors import ConfigError, LayoutError, SourceError, UserError
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from builders.sources.pieces import locate
from tests.tiny import save_llama

WEIGHTS, PICKLED = "model.safetensors", "pytorch_model.bin"


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("honest"))


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(honest, tmp_path / "model"))


@pytest.fixture
def pickled(folder: Path) -> Path:
    """The same in the older format."""
    torch.save(load_file(folder / WEIGHTS), folder / PICKLED)
    (folder / WEIGHTS).unlink()
    return folder


def convert(folder: Path, mapping: Mapping | None = None) -> None:
    """All that reads a source: its headers, and every number in it."""
    opened = open_folder(folder)
    located = locate(opened.family, opened.spec, opened.index)
    plan = ConvertPlan(spec=opened.spec, mapping=mapping or Mapping(), dtype=torch.float32, located=located)
    out = folder.parent / "out"
    out.mkdir()
    try:
        convert_rank(plan, 0, out)
    finally:
        shutil.rmtree(out)


def refusal(folder: Path, kind: type[UserError] = SourceError, mapping: Mapping | None = None) -> str:
    """The complaint about a checkpoint, which is one line without control characters."""
    with pytest.raises(kind) as caught:
        convert(folder, mapping)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600
    return message


def test_honest_files_are_read(folder: Path) -> None:
    convert(folder)


def test_honest_pickles_are_read(pickled: Path) -> None:
    convert(pickled)


# --- safetensors ---


def test_truncated_safetensors(folder: Path) -> None:
    file = folder / WEIGHTS
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in [*range(12), *range(12, header, 97), header, header + 1, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:size])
        assert "not a readable safetensors file" in refusal(folder)


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    whole = file.read_bytes()
    stop = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:stop])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[stop:])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "NaN"},
        {"dtype": "F8_E4M3", "shape": [128]},
        {"shape": [33]},
        {"shape": [-32]},
        {"shape": [2**62, 2**62]},
        {"data_offsets": [-128, 0]},
        {"data_offsets": [64, 192]},
        {"data_offsets": [128, 0]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [0.5, 128]},
        {"data_offsets": None},
    ],
    ids=repr,
)
def test_headers_that_lie(entry: dict[str, Any], folder: Path) -> None:
    rewrite_header(folder / WEIGHTS, lambda header: header[NORM].update(entry))
    assert str(folder / WEIGHTS) in refusal(folder)


def test_two_tensors_cannot_share_their_data(folder: Path) -> None:
    other = "model.layers.0.input_layernorm.weight"
    rewrite_header(folder / WEIGHTS, lambda header: header.update({NORM: header[other]}))
    assert str(folder / WEIGHTS) in refusal(folder)


def test_names_that_would_write_on_the_screen(folder: Path) -> None:
    rewrite_header(folder / WEIGHTS, lambda header: header.update({"a\n\x1b[2Jb": header.pop(NORM)}))
    assert r"a\n\x1b[2Jb" in refusal(folder)


def test_a_folder_or_nothing_in_the_place_of_the_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert "no weights" in refusal(folder)
    (folder / WEIGHTS).mkdir()
    assert "no weights" in refusal(folder)


# --- the index of several files ---


PART = "model-00001-of-00001.safetensors"


def write_index(folder: Path, content: str | bytes) -> None:
    """And no file of the name that would be preferred."""
    (folder / WEIGHTS).rename(folder / PART)
    index = folder / "model.safetensors.index.json"
    index.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/model.safetensors", "..\\x/y", "x/../y", "."])
def test_index_that_leaves_the_folder(name: str, folder: Path) -> None:
    write_index(folder, json.dumps({"weight_map": {NORM: name}}))
    assert "outside its folder" in refusal(folder)


@pytest.mark.parametrize("name", ["gone.safetensors", "", "..", "a\nb", "a\0b"], ids=repr)
def test_index_that_names_a_missing_file(name: str, folder: Path) -> None:
    write_index(folder, json.dumps({"weight_map": {NORM: name}}))
    assert f"names {name!r}, which is missing" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    ["", "no json", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', b"\xff\xfe", "[" * 100_000],
    ids=lambda content: repr(content[:20]),
)
def test_index_that_is_none(content: str | bytes, folder: Path) -> None:
    write_index(folder, content)
    assert "index.json" in refusal(folder)


def test_tensor_in_two_files(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({NORM: tensors[NORM]}, folder / "other.safetensors")
    write_index(folder, json.dumps({"weight_map": {NORM: "other.safetensors", "x": PART}}))
    assert f"{NORM} is also in" in refusal(folder)


# --- pickles ---


class Harm:
    """Would make a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def legacy(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def bare(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def inside_a_zip(content: object, file: Path) -> None:
    """A member of the right name, in a zip that torch.save did not write."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("write", [torch.save, legacy, bare, inside_a_zip])
@pytest.mark.parametrize("wrap", [lambda harm: harm, lambda harm: {"x": harm}, lambda harm: {harm: 1}])
def test_pickle_that_runs_code_does_not(
    write: Callable[[object, Path], None], wrap: Callable[[Harm], object], pickled: Path
) -> None:
    marker = pickled / "harmed"
    write(wrap(Harm(marker)), pickled / PICKLED)
    assert PICKLED in refusal(pickled)
    assert not marker.exists()


def test_format_from_before_torch_1_6(pickled: Path) -> None:
    legacy({"x": torch.zeros(1)}, pickled / PICKLED)
    assert "save it again" in refusal(pickled)


def test_truncated_pickle(pickled: Path) -> None:
    whole = (pickled / PICKLED).read_bytes()
    for size in [*range(0, len(whole), len(whole) // 40), len(whole) - 1]:
        (pickled / PICKLED).write_bytes(whole[:size])
        assert "truncated" in refusal(pickled)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(3), "holds a Tensor; expected a dict"),
        ([torch.zeros(3)], "holds a list; expected a dict"),
        (7, "holds a int; expected a dict"),
        ({"a": 1, "b": "text"}, "checkpoint lacks"),
        ({NORM: torch.zeros(32).to_sparse()}, "is sparse"),
        ({NORM: torch.zeros(32, device="meta")}, "has no data"),
        ({"a\nb": torch.zeros(1)}, r"'a\nb'"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_pickles_that_hold_something_else(content: object, said: str, pickled: Path) -> None:
    torch.save(content, pickled / PICKLED)
    assert said in refusal(pickled)


@pytest.mark.parametrize("name", [WEIGHTS, PICKLED])
def test_random_damage_is_an_error_or_harmless(name: str, folder: Path) -> None:
    """Bytes changed, removed and added where the structure is: never another exception."""
    tensors, file = load_file(folder / WEIGHTS), folder / name
    if name == PICKLED:
        torch.save(tensors, file)
        (folder / WEIGHTS).unlink()
    whole, rng = file.read_bytes(), random.Random(0)
    front, back = range(0, 4000), range(len(whole) - 4000, len(whole))
    for _ in range(150):
        damaged = bytearray(whole)
        at = rng.choice(rng.choice([front, back]))
        damaged[at : at + rng.choice([0, 1, 8])] = rng.randbytes(rng.choice([1, 1, 8]))
        file.write_bytes(damaged)
        try:
            convert(folder)
        except UserError as error:
            assert "\n" not in str(error)


# --- what is in the files ---


def change_tensors(folder: Path, **changes: Tensor | None) -> None:
    tensors = {
        **load_file(folder / WEIGHTS),
        **{name.replace("__", "."): new for name, new in changes.items()},
    }
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


def test_missing_tensors_are_listed(folder: Path) -> None:
    change_tensors(folder, model__norm__weight=None, lm_head__weight=None)
    message = refusal(folder)
    assert "lacks 2 tensors" in message and "lm_head.weight, norm.weight" in message


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    save_file({"lm_head.weight": load_file(folder / WEIGHTS)["lm_head.weight"]}, folder / WEIGHTS)
    assert "lacks 29 tensors" in (message := refusal(folder)) and "and 24 more" in message


def test_left_over_tensors_are_listed(folder: Path) -> None:
    change_tensors(folder, extra__weight=torch.zeros(2), model__layers__3__mlp__weight=torch.zeros(2))
    message = refusal(folder)
    assert "2 tensors that llama does not use: extra.weight, model.layers.3.mlp.weight" in message


def test_tensor_with_and_without_the_prefix(folder: Path) -> None:
    change_tensors(folder, norm__weight=torch.zeros(32))
    assert "1 tensors with and without prefix: model.norm.weight" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.norm.weight", (33,)),
        ("model.embed_tokens.weight", (102, 32)),
        ("model.embed_tokens.weight", (32, 101)),
        ("model.layers.1.self_attn.k_proj.weight", (32, 32)),
        ("model.layers.1.mlp.down_proj.weight", (48, 32)),
        ("lm_head.weight", (101 * 32,)),
    ],
)
def test_shapes_of_another_model(name: str, shape: tuple[int, ...], folder: Path) -> None:
    change_tensors(folder, **{name: torch.zeros(shape)})
    message = refusal(folder)
    assert name in message and str(list(shape)) in message and "another model's" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_no_floating_point_numbers(dtype: torch.dtype, folder: Path) -> None:
    change_tensors(folder, model__norm__weight=torch.ones(32).to(dtype))
    assert "must be floating-point" in refusal(folder)


# --- the configuration, and what is asked for ---


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '"llama"', b"\xff\xfe\x00", "[" * 100_000], ids=lambda c: repr(c[:20])
)
def test_configuration_that_is_none(content: str | bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "config.json" in refusal(folder)


def test_configuration_that_is_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json: missing" in refusal(folder)


@pytest.mark.parametrize("name", ["num_attention_heads", "num_hidden_layers", "vocab_size", "hidden_size"])
def test_nothing_of_something(name: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: 0}))
    assert f"{name}=0" in refusal(folder, ConfigError)


def test_more_ranks_than_tokens(folder: Path) -> None:
    save_llama(folder, vocab_size=3)
    message = refusal(folder, LayoutError, Mapping(tp_size=4))
    assert message == "--tp_size=4: larger than the vocabulary of 3; sizes that work: 1, 2"


def test_more_stages_than_layers(folder: Path) -> None:
    assert "sizes that work: 1 to 3" in refusal(folder, LayoutError, Mapping(pp_size=4))


def test_an_unreadable_stream_is_never_unpickled_by_suffix(folder: Path) -> None:
    """Only the restricted reader ever sees a pickle: a .safetensors that is one is refused as damaged."""
    buffer = io.BytesIO()
    torch.save({"x": Harm(folder / "harmed")}, buffer)
    (folder / WEIGHTS).write_bytes(buffer.getvalue())
    assert "not a readable safetensors file" in refusal(folder)
    assert not (folder / "harmed").exists()
