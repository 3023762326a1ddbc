"""Torch engines: built from every family and layout without a compiler, from a few with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.build import build_unit, plan_build
from builders.checkpoint import Manifest, read_manifest
from builders.config_file import to_json
from builders.engine_folder import load_engine
from builders.engine_manifest import Unit, read_engine, unit_folder
from builders.errors import ArtifactError, EngineError
from builders.limits import Limits
from builders.mapping import Mapping
from builders.ops import LayerCache, Step
from builders.spec import ModelSpec
from builders.store import Store, disk
from builders.tensor_file import Written
from tests import sim
from tests.builders.test_families import LAYOUTS, MOE_LAYOUTS, check, reference, sources
from tests.convert_tools import convert_opened
from tests.oracle import MODELS

__all__ = ["sources"]

LIMITS = Limits(max_batch_size=4, max_seq_len=64, max_input_len=32, tokens_per_block=sim.BLOCK)


def build(checkpoint: Path, *, compiled: bool, limits: Limits = LIMITS) -> Path:
    """An engine in the checkpoint's own folder, without the command around it."""
    manifest = read_manifest(checkpoint)
    plan = plan_build(manifest, limits, compiled=compiled)
    engine = plan.manifest(
        manifest, limits, tuple(Unit(key=unit.recipe.key, files=()) for unit in plan.units)
    )
    units = []
    for unit, planned in zip(engine.units, plan.units, strict=True):
        folder = unit_folder(checkpoint, unit)
        folder.mkdir(parents=True)
        build_unit(planned, folder)
        units.append(Unit(key=unit.key, files=tuple(written(file) for file in sorted(folder.iterdir()))))
    finished = plan.manifest(manifest, limits, tuple(units))
    (checkpoint / "config.json").write_text(json.dumps(to_json(finished)))
    return checkpoint


def written(file: Path) -> Written:
    return Written(name=file.name, num_bytes=file.stat().st_size, sha256=disk.sha256(file))


class AsDecoder:
    """An engine where the simulation expects a decoder."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank

    def new_caches(self, num_blocks: int, _tokens_per_block: int) -> list[LayerCache]:
        self._engine = load_engine(self._folder, self._rank, num_blocks=num_blocks)
        return []

    def __call__(self, x: Tensor, step: Step, _caches: list[LayerCache]) -> Tensor:
        return self._engine.forward(x, step)


@pytest.fixture
def engines_for_decoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulation loads engines, which hold their collectives, in the place of decoders."""

    def manifest(folder: Path) -> Manifest:
        return read_engine(folder).checkpoint

    monkeypatch.setattr(sim, "load_rank", AsDecoder)
    monkeypatch.setattr(sim, "parallelize", lambda *_args: None)
    monkeypatch.setattr(sim, "read_manifest", manifest)
    yield


def cases() -> list[Any]:
    often = {"1", "tp2pp2", "ep2"}
    return [
        pytest.param(name, layout, marks=[] if layout in often else pytest.mark.slow, id=f"{name}-{layout}")
        for name in MODELS
        for layout in LAYOUTS | (MOE_LAYOUTS if name.startswith(("mixtral", "dbrx")) else {})
        if not (name == "mpt-six-heads" and layout == "tp4")
    ]


@pytest.mark.usefixtures("engines_for_decoders")
@pytest.mark.parametrize(("name", "layout"), cases())
def test_exported_graph_is_the_decoder(name: str, layout: str, sources: Path, tmp_path: Path) -> None:
    wanted = reference(name, sources)
    checkpoint = convert_opened(wanted.opened, (LAYOUTS | MOE_LAYOUTS)[layout], tmp_path / "out")
    check(wanted, build(checkpoint, compiled=False))


@pytest.mark.slow
@pytest.mark.usefixtures("engines_for_decoders")
@pytest.mark.parametrize(
    ("name", "layout"),
    [("llama2-gqa", "tp2pp2"), ("mixtral", "ep2"), ("mpt", "tp2-vocab"), ("gpt2", "1")],
)
def test_compiled_engine_is_the_decoder(name: str, layout: str, sources: Path, tmp_path: Path) -> None:
    wanted = reference(name, sources)
    checkpoint = convert_opened(wanted.opened, (LAYOUTS | MOE_LAYOUTS)[layout], tmp_path / "out")
    check(wanted, build(checkpoint, compiled=True))


@pytest.fixture
def checkpoint(sources: Path, tmp_path: Path) -> Path:
    return convert_opened(
        reference("llama2-gqa", sources).opened, Mapping(tp_size=4, pp_size=3), tmp_path / "out"
    )


def test_ranks_of_equal_shape_share_their_programs(checkpoint: Path) -> None:
    plan = plan_build(read_manifest(checkpoint), LIMITS, compiled=True)
    assert plan.ranks == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert len(plan.units) == 4  # embed, rotary, block, head
    assert [len(programs.layers) for programs in plan.programs] == [1, 1, 1]


def test_depth_adds_no_units(sources: Path) -> None:
    manifest = Manifest(
        spec=reference("llama2-gqa", sources).opened.spec,
        mapping=Mapping(),
        dtype="bfloat16",
        source=None,  # type: ignore[arg-type]
        random_seed=0,
    )
    deep = replace(manifest, spec=replace(manifest.spec, num_layers=80))
    keys = [[u.recipe.key for u in plan_build(m, LIMITS, compiled=True).units] for m in (manifest, deep)]
    assert keys[0] == keys[1]


def test_limits_rebuild_only_what_depends_on_them(checkpoint: Path) -> None:
    manifest = read_manifest(checkpoint)

    def keys(**changes: int) -> set[str]:
        limits = Limits(**{**vars(LIMITS), **changes})
        return {unit.recipe.key for unit in plan_build(manifest, limits, compiled=True).units}

    assert keys(max_batch_size=2) == keys()
    assert keys(max_attention_window_size=64) == keys()  # no sequence is longer
    assert len(keys(max_attention_window_size=63) - keys()) == 1
    assert len(keys(tokens_per_block=8) - keys()) == 1  # the block, whose cache has that shape


def test_changed_program_is_refused_before_it_is_loaded(checkpoint: Path) -> None:
    engine = build(checkpoint, compiled=False)
    file = next(engine.glob("programs/*/program.json"))
    file.write_text(file.read_text().replace("aten.add", "aten.sub") + " ")
    with pytest.raises(ArtifactError, match="not the file that was built"):
        for rank in range(12):
            load_engine(engine, rank, num_blocks=1)


@pytest.mark.slow
def test_loading_imports_no_compiler(checkpoint: Path) -> None:
    engine = build(checkpoint, compiled=True)
    check_imports = (
        "import sys; from pathlib import Path; from builders.engine_folder import load_engine\n"
        f"load_engine(Path({str(engine)!r}), 0, num_blocks=2)\n"
        "slow = ('torch._inductor', 'torch._dynamo', 'transformers')\n"
        "print([name for name in sys.modules if name.startswith(slow)])"
    )
    command = [sys.executable, "-c", check_imports]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_big_models_are_exported_without_their_weights() -> None:
    spec = ModelSpec(
        family="gpt2", vocab_size=51200, hidden_size=20480, num_layers=105, num_heads=128, num_kv_heads=128,
        head_dim=160, intermediate_size=81920, max_positions=2048, norm="layernorm", norm_eps=1e-5,
        norm_bias=True, position="learned", activation="gelu_tanh", qkv_bias=True, attention_out_bias=True,
        mlp_bias=True, attention_scale=160**-0.5,
    )  # fmt: skip
    manifest = Manifest(
        spec=spec, mapping=Mapping(tp_size=8), dtype="float16", source=None, random_seed=0  # type: ignore[arg-type]
    )  # fmt: skip
    plan = plan_build(manifest, Limits(), compiled=False)
    assert len(plan.units) == 3 and plan.ranks == (0,) * 8
    assert torch.get_default_dtype() is torch.float32


def test_a_machine_of_another_kind_does_not_compile(checkpoint: Path, tmp_path: Path) -> None:
    manifest = read_manifest(checkpoint)
    here, vax = (plan_build(manifest, LIMITS, compiled=True, on=on) for on in (None, "vax/none"))
    assert vax.manifest(manifest, LIMITS, ()).processor == "vax/none"
    assert len({unit.recipe.key for plan in (here, vax) for unit in plan.units if unit.compiled}) == 4
    unit = next(unit for unit in vax.units if unit.compiled)
    with pytest.raises(EngineError, match="and the engine is compiled for vax/none; have it built by"):
        unit.build(tmp_path / "unit", Store(tmp_path / "store"), lambda _share: None)
    assert not (tmp_path / "unit").exists()
