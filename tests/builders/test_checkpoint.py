"""What a checkpoint says of itself: its key, what is refused, and weights that are made up on loading."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.checkpoint import Manifest, Provenance, SourceFile, load_rank, read_manifest
from builders.convert import rank_elements
from builders.errors import ArtifactError
from builders.families import from_transformers
from builders.mapping import Mapping
from builders.sources.hf import open_folder
from builders.sources.pieces import RandomPieces
from builders.spec import ModelSpec, MoeSpec, RopeSpec
from builders.tensor_file import Written
from tests.convert_tools import convert_opened
from tests.merging import merged
from tests.strategies import is_legal
from tests.tiny import save_llama

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "vocab_size": 101,
}
GPT = {"n_embd": 24, "n_head": 4, "n_layer": 3, "vocab_size": 101, "n_positions": 16}
FILE = SourceFile(sha256="a" * 64, num_bytes=10, inode=2, changed_ns=1)


def understood(model_type: str, **values: Any) -> ModelSpec:
    return from_transformers({"model_type": model_type, **values})[1]


def made_up(spec: ModelSpec, mapping: Mapping | None = None, **changes: Any) -> Manifest:
    source = Provenance(model="some/model", revision="main", files={"w": FILE, "tokenizer.json": FILE})
    fields: dict[str, Any] = {"dtype": "float32", "source": source, "random_seed": 3, **changes}
    return Manifest(spec=spec, mapping=mapping or Mapping(), **fields)


def write(folder: Path, manifest: Manifest) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(manifest.to_json()))
    return folder


# --- the content key ---

SPEC = understood("llama", **SIZES)

OTHER_SPECS: dict[str, Any] = {
    "family": "gpt2",
    "vocab_size": 102,
    "hidden_size": 25,
    "num_layers": 4,
    "num_heads": 8,
    "num_kv_heads": 4,
    "head_dim": 8,
    "intermediate_size": 33,
    "max_positions": 17,
    "norm": "layernorm",
    "norm_eps": 2e-6,
    "norm_bias": True,
    "rope": RopeSpec(rotary_dim=6, theta=5e5),
    "alibi_bias_max": 9.0,
    "activation": "gelu",
    "gated": False,
    "moe": MoeSpec(num_experts=2, top_k=1, renormalize=True),
    "qkv_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "attention_scale": 0.5,
    "scale_by_layer": True,
    "sliding_window": 5,
    "clip_qkv": 8.0,
    "qk_norm": "head",
    "tied_embeddings": True,
    "head_bias": True,
    "embedding_scale": 2.0,
    "logit_scale": 0.5,
}


def test_every_field_of_the_spec_is_in_the_key() -> None:
    position = {"position", "rope"}  # one follows from the other
    assert OTHER_SPECS.keys() | position == {field.name for field in dataclasses.fields(ModelSpec)}
    others = [dataclasses.replace(SPEC, **{name: value}) for name, value in OTHER_SPECS.items()]
    others.append(dataclasses.replace(SPEC, position="alibi", rope=None))
    assert len({made_up(spec).key for spec in [SPEC, *others]}) == len(others) + 1


MATTERS: dict[str, dict[str, Any]] = {
    "mapping": {"mapping": Mapping(tp_size=2)},
    "expert parallel": {"mapping": Mapping(tp_size=2, ep_size=2)},
    "pipeline": {"mapping": Mapping(pp_size=2)},
    "embedding": {"mapping": Mapping(embedding_split="vocab")},
    "layout version": {"mapping": Mapping(version=2)},
    "dtype": {"dtype": "bfloat16"},
    "seed": {"random_seed": 4},
    "no seed": {"random_seed": None},
}


def with_files(manifest: Manifest, **files: SourceFile) -> Manifest:
    return dataclasses.replace(manifest, source=dataclasses.replace(manifest.source, files=files))


def test_everything_that_matters_moves_the_key() -> None:
    base = made_up(SPEC)
    others = [dataclasses.replace(base, **changes) for changes in MATTERS.values()]
    changed = dataclasses.replace(FILE, sha256="b" * 64)
    others += [with_files(base, w=FILE), with_files(base, w=changed, **{"tokenizer.json": FILE})]
    assert len({manifest.key for manifest in [base, *others]}) == len(others) + 1


@settings(deadline=None, max_examples=50)
@given(
    source=st.builds(
        Provenance,
        model=st.text(),
        revision=st.none() | st.text(),
        files=st.permutations(["w", "tokenizer.json"]).flatmap(
            lambda names: st.fixed_dictionaries(
                {
                    name: st.builds(
                        SourceFile,
                        sha256=st.just(FILE.sha256),
                        num_bytes=st.integers(0),
                        inode=st.integers(0),
                        changed_ns=st.integers(0),
                    )
                    for name in names
                }
            )
        ),
    ),
    ranks=st.lists(st.builds(Written, name=st.text(), num_bytes=st.integers(0), sha256=st.text())).map(tuple),
)
def test_nothing_else_does(source: Provenance, ranks: tuple[Written, ...]) -> None:
    """Not where the source was, nor when its files were written, nor what came out."""
    base = made_up(SPEC)
    assert dataclasses.replace(base, source=source, ranks=ranks).key == base.key


# --- reading ---


def test_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    moe = understood("mixtral", **SIZES, num_local_experts=4)
    for spec in (SPEC, moe, understood("gpt2", **GPT)):
        manifest = made_up(spec, Mapping(tp_size=2, embedding_split="hidden"))
        assert read_manifest(write(tmp_path, manifest)) == manifest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "somebody-elses"),
        (["format_version"], 2),
        (["key"], "0" * 64),
        (["dtype"], "NaN"),
        (["dtype"], "float16"),
        (["spec", "num_layers"], 2),
        (["spec", "num_layers"], "three"),
        (["spec", "num_heads"], 0),
        (["spec", "norm_eps"], float("nan")),
        (["spec", "surprise"], 1),
        (["mapping", "tp_size"], 2),
        (["mapping"], None),
        (["source", "files"], []),
        (["ranks"], {}),
    ],
    ids=repr,
)
def test_manifest_that_was_changed(path: list[str], value: object, tmp_path: Path) -> None:
    data = made_up(SPEC).to_json()
    *outer, last = path
    place = data
    for name in outer:
        place = place[name]
    place[last] = value
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError) as caught:
        read_manifest(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"model_type": "llama"}'])
def test_folders_of_something_else(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match="not a rankforge") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    opened = open_folder(save_llama(tmp_path / "model"))
    return convert_opened(opened, Mapping(tp_size=2), tmp_path / "out")


def test_rank_file_that_is_missing_or_cut_short(converted: Path) -> None:
    file = converted / "rank1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactError, match="convert again"):
        load_rank(converted, 1)
    file.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_rank(converted, 1)
    load_rank(converted, 0, verify=True)


def test_rank_file_with_other_content_is_found_when_asked_for(converted: Path) -> None:
    file = converted / "rank0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    load_rank(converted, 0)
    with pytest.raises(ArtifactError, match="its content is not what"):
        load_rank(converted, 0, verify=True)


# --- weights made up on loading ---

LAYOUTS = [
    Mapping(),
    Mapping(tp_size=2),
    Mapping(pp_size=3),
    Mapping(tp_size=4, pp_size=2, embedding_split="vocab"),
    Mapping(tp_size=2, embedding_split="hidden"),
    Mapping(tp_size=2, ep_size=2),
    Mapping(tp_size=4, ep_size=2),
]


@pytest.mark.parametrize(
    "spec",
    [
        understood("llama", **SIZES, tie_word_embeddings=True, attention_bias=True),
        understood("mixtral", **SIZES, num_local_experts=4),
        understood("gpt2", **GPT),
        understood("mpt", d_model=24, n_heads=4, n_layers=3, vocab_size=101, max_seq_len=16),
    ],
    ids=lambda spec: spec.family,
)
def test_random_weights_are_the_same_in_every_layout(spec: ModelSpec, tmp_path: Path) -> None:
    wholes = None
    for index, mapping in enumerate(layout for layout in LAYOUTS if is_legal(spec, layout)):
        folder = write(tmp_path / str(index), made_up(spec, mapping))
        found = merged(spec, mapping, lambda rank, folder=folder: load_rank(folder, rank).state_dict())
        wholes = wholes or found
        for name, tensor in found.items():
            assert torch.equal(tensor, wholes[name]), f"{name} in {mapping}"
    assert wholes and not any(tensor.isnan().any() for tensor in wholes.values())
    assert torch.equal(wholes["head.weight"], wholes["embed.weight"]) == spec.tied_embeddings


def test_random_weights_follow_their_seed_and_dtype(tmp_path: Path) -> None:
    def embedding(**changes: Any) -> torch.Tensor:
        folder = write(tmp_path / "made-up", made_up(SPEC, **changes))
        return load_rank(folder, 0).state_dict()["embed.weight"]

    assert torch.equal(embedding(), embedding())
    assert not torch.equal(embedding(), embedding(random_seed=4))
    assert torch.equal(embedding().bfloat16(), embedding(dtype="bfloat16"))


@pytest.mark.parametrize(
    ("billions", "layers", "hidden", "heads", "pp_size"),
    [(175, 96, 12288, 96, 12), (530, 105, 20480, 128, 35)],
)
def test_huge_models_cost_nothing_until_they_are_loaded(
    billions: float, layers: int, hidden: int, heads: int, pp_size: int, tmp_path: Path
) -> None:
    tracemalloc.start()
    spec = understood("gpt2", n_layer=layers, n_embd=hidden, n_head=heads, n_positions=2048, vocab_size=50257)
    mapping = Mapping(tp_size=8, pp_size=pp_size, embedding_split="vocab")
    manifest = made_up(spec, mapping)
    assert read_manifest(write(tmp_path, manifest)) == manifest
    elements = [rank_elements(spec, mapping, rank) for rank in range(mapping.world_size)]
    _now, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(elements) / 1e9 == pytest.approx(billions, rel=0.01)
    assert max(elements) < 1.3 * sum(elements) / mapping.world_size
    assert peak_bytes < 2**24 and (tmp_path / "config.json").stat().st_size < 2**14
    last = f"layers.{layers - 1}.attn.q.weight"
    assert math.isclose(RandomPieces(spec, 3).read(last, (0, 8), (0, hidden)).std(), 0.02, rel_tol=0.05)
