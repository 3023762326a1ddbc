"""Networks built for real, for GPUs that are not here; and what is refused before that."""

from __future__ import annotations

import importlib.util
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.errors import EngineError
from builders.export import export_rank
from builders.limits import Limits
from builders.mapping import Mapping
from builders.spec import ModelSpec
from builders.trt import build as building
from builders.trt import target as targets
from builders.trt.build import Plan, build_plan
from builders.trt.network import Network, lower
from builders.trt.target import TARGETS, Target, check_target, choose_target, load_library
from cluster import build_options
from tests.builders.test_families import LAYOUTS, MOE_LAYOUTS
from tests.builders.test_trt_network import BEYOND, spec_of
from tests.oracle import MODELS
from tests.trt_ranks import LIMITS, network

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

MAIN_TARGETS = ("sm80", "sm89", "sm120")


def buildable(name: str) -> ModelSpec:
    """TensorRT's attention wants heads of 8, 16, 24...; most tiny models have 12."""
    spec = spec_of(name)
    return replace(spec, head_dim=-(-spec.head_dim // 8) * 8)


def built(
    name: str,
    target: str,
    *,
    mapping: Mapping | None = None,
    dtype: torch.dtype = torch.float16,
    strip: bool = False,
) -> Plan:
    lowered = network(buildable(name), mapping or Mapping(), 0, trt, strip=strip, dtype=dtype)
    return build_plan(lowered, choose_target(target))


def every_model() -> list[Any]:
    """Each for one target here, for the others in the whole run."""
    return [
        pytest.param(name, target, marks=[] if number % 3 == place else pytest.mark.long)
        for number, name in enumerate([*MODELS, *BEYOND])
        for place, target in enumerate(MAIN_TARGETS)
    ]


@pytest.mark.parametrize(("name", "target"), every_model())
def test_every_model_builds(name: str, target: str) -> None:
    assert built(name, target).data.nbytes > 10_000


@pytest.mark.parametrize("target", MAIN_TARGETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_other_types_build(dtype: torch.dtype, target: str) -> None:
    assert built("llama2-gqa", target, dtype=dtype).data.nbytes > 10_000


@pytest.mark.long
@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "starcoder2", "mpt", "mixtral", "mpt-qk-norm-whole"])
@pytest.mark.parametrize("strip", [True, False])
def test_every_target_builds(name: str, dtype: torch.dtype, target: str, strip: bool) -> None:
    if target == "sm75" and dtype != torch.float16:
        with pytest.raises(EngineError, match=r"SM75|sm75"):
            built(name, target, dtype=dtype, strip=strip)
        return
    assert built(name, target, dtype=dtype, strip=strip).data.nbytes > 10_000


LAYOUTS_BUILT = [
    ("llama2-gqa", "tp2pp2-vocab"),
    ("gpt2", "tp2-hidden"),
    ("mixtral", "tp4ep2"),
    ("mpt-qk-norm-whole", "tp2"),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS_BUILT)
def test_collectives_build(name: str, layout: str) -> None:
    mapping = (LAYOUTS | MOE_LAYOUTS)[layout]
    assert built(name, "sm89", mapping=mapping, strip=True).data.nbytes > 10_000


def test_ranks_of_equal_shape_share_a_plan() -> None:
    """Without weights, nothing in the network says which rank it is of, nor where its layers start."""
    spec, mapping = buildable("mixtral"), Mapping(tp_size=2, pp_size=3, ep_size=2)

    def description(rank: int) -> list[str]:
        lowered = network(spec, mapping, rank, trt, strip=True)
        layers = [lowered.definition.get_layer(index) for index in range(lowered.definition.num_layers)]
        return [layer.name for layer in layers] + list(lowered.weight_inputs)

    assert description(2) == description(3)
    assert description(0) == description(1) != description(2)


WIDE = ModelSpec(
    family="gpt2", vocab_size=51200, hidden_size=12288, num_layers=96, num_heads=96, num_kv_heads=96,
    head_dim=128, intermediate_size=49152, max_positions=2048, norm="layernorm", norm_eps=1e-5,
    norm_bias=True, position="learned", activation="gelu_tanh", qkv_bias=True, attention_out_bias=True,
    mlp_bias=True, attention_scale=128**-0.5, tied_embeddings=True,
)  # fmt: skip
"""GPT-175B."""


def wide_plan(spec: ModelSpec) -> Plan:
    """Rank 0 of eight, without weights."""
    mapping, limits = Mapping(tp_size=8), Limits(max_batch_size=8)
    graphs = export_rank(spec, mapping, 0, torch.float16, limits.tokens_per_block)
    lowered = lower(graphs, spec, mapping, 0, torch.float16, limits, trt, None)
    return build_plan(lowered, choose_target("sm80"))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_plans_without_weights_take_no_memory_for_them() -> None:
    before = peak_bytes()
    plan = wide_plan(replace(WIDE, num_layers=2))
    assert plan.data.nbytes < 50 * 2**20
    assert peak_bytes() - before < 500 * 2**20  # of 1.1 GB a rank


@pytest.mark.long
@pytest.mark.timeout(900)
def test_gpt_175b_builds() -> None:
    assert wide_plan(WIDE).data.nbytes < 2**28


class TimingBuilder:
    """A data-centre TensorRT, as far as its timing cache goes, around the real builder."""

    def __init__(self, builder: Any, given: list[bytes]) -> None:
        self._builder, self.given = builder, given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def create_builder_config(self) -> Any:
        return TimingConfig(self._builder.create_builder_config(), self.given)

    def build_serialized_network(self, definition: Any, config: Any) -> Any:
        return self._builder.build_serialized_network(definition, config.config)


class TimingConfig:
    def __init__(self, config: Any, given: list[bytes]) -> None:
        self.config, self._given = config, given

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return None if data == b"torn" else data

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache == b"foreign":
            return False
        self._given.append(cache)
        return True

    def get_timing_cache(self) -> Any:
        return self

    def serialize(self) -> bytearray:
        return bytearray(self._given[-1] + b"learned")


def test_timing_cache_goes_in_and_out_where_the_builder_times() -> None:
    lowered = network(buildable("gpt2"), Mapping(), 0, trt, strip=True, dtype=torch.float16)
    timed = replace(lowered, builder=TimingBuilder(lowered.builder, []))
    as_timed = type("Timed", (Target,), {"is_timed": True})(**vars(TARGETS["sm80"]))
    assert build_plan(timed, as_timed, timing_cache=b"known ").timing_cache == b"known learned"
    for useless in (b"torn", b"foreign", b""):
        assert build_plan(timed, as_timed, timing_cache=useless).timing_cache == b"learned"
    assert build_plan(lowered, TARGETS["sm80"], timing_cache=b"known ").timing_cache == b""


def test_progress_only_rises_and_ends_whole() -> None:
    heard: list[float] = []
    lowered = network(buildable("gpt2"), Mapping(), 0, trt, strip=True, dtype=torch.float16)
    build_plan(lowered, choose_target("sm80"), heard=heard.append)
    assert heard == sorted(heard) and (heard[0], heard[-1]) == (0.0, 1.0)
    assert len(set(heard)) > 20


def test_workspace_is_known_without_the_gpu() -> None:
    def workspace(limits: Limits) -> int:
        lowered = network(
            buildable("gpt2"), Mapping(), 0, trt, strip=True, dtype=torch.float16, limits=limits
        )
        found = build_plan(lowered, choose_target("sm80")).activation_bytes
        assert found is not None
        return found

    assert 0 < workspace(LIMITS) < workspace(replace(LIMITS, max_batch_size=512, max_num_tokens=512))


def test_two_networks_keep_their_own_logs() -> None:
    """TensorRT knows one logger for all of them."""
    broken, sound = (
        network(spec, Mapping(), 0, trt, strip=True, dtype=torch.float16)
        for spec in (spec_of("gpt2"), buildable("gpt2"))
    )
    assert build_plan(sound, choose_target("sm80")).data.nbytes > 10_000
    with pytest.raises(EngineError, match=r"cannot build this model: .*Error"):
        build_plan(broken, choose_target("sm80"))
    assert broken.log.errors and not sound.log.errors


def test_weights_are_used_where_they_lie() -> None:
    """No copy is made of weights that have the network's dtype."""
    spec, mapping = buildable("llama2-gqa"), Mapping()
    graphs = export_rank(spec, mapping, 0, torch.float16, 32)
    made = {}

    def weight(name: str) -> torch.Tensor:
        (kind,) = (
            piece.types[value]
            for piece in (graphs.embed, *graphs.blocks, graphs.head)
            if piece
            for value, stored in piece.weights.items()
            if name.endswith(stored) and (name == stored or stored not in ("norm.weight",))
        )
        made[name] = torch.zeros([int(size) for size in kind.shape], dtype=torch.float16)
        return made[name]

    lowered = lower(graphs, spec, mapping, 0, torch.float16, LIMITS, trt, weight)
    assert {tensor.data_ptr() for tensor in made.values()} <= {tensor.data_ptr() for tensor in lowered.held}


def checked(
    target: str, name: str = "llama2-gqa", dtype: torch.dtype = torch.float16, **changes: Any
) -> None:
    spec = replace(buildable(name), **changes)
    check_target(choose_target(target), spec, export_rank(spec, Mapping(), 0, dtype, 32), LIMITS)


def test_types_that_a_target_lacks() -> None:
    with pytest.raises(EngineError, match="--target=sm75: the model is bfloat16; Turing has no bfloat16"):
        checked("sm75", dtype=torch.bfloat16)
    with pytest.raises(EngineError, match="--target=sm75: the model is float32"):
        checked("sm75", dtype=torch.float32)
    checked("sm75")
    for target in ("sm75", "sm80", "sm86"):
        assert "Ada" in TARGETS[target].refused["float8_e4m3fn"]
    for target in MAIN_TARGETS:
        checked(target, dtype=torch.bfloat16)


def test_what_tensorrt_cannot_attend_with_is_refused_before_the_build() -> None:
    with pytest.raises(EngineError, match=r"head_dim=12: .* multiple of 8"):
        checked("sm80", head_dim=12)
    graphs = export_rank(buildable("gpt2"), Mapping(), 0, torch.float16, 32)
    with pytest.raises(EngineError, match=r"--max_seq_len=40: .* multiple of 16"):
        check_target(choose_target("sm80"), buildable("gpt2"), graphs, replace(LIMITS, max_seq_len=40))


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(EngineError, match="--target=sm90: not a TensorRT target; use one of current, sm75"):
        choose_target("sm90")


def test_target_names_are_those_of_the_command_line() -> None:
    assert build_options.TARGETS["tensorrt"] == ("current", *TARGETS)


class Gpu:
    """What PyTorch says of a GPU, and which libraries are installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *libraries: str) -> None:
        self._patch = monkeypatch
        self._patch.setattr(targets, "is_installed", libraries.__contains__)

    def set(self, *capability: int) -> None:
        self._patch.setattr(torch.cuda, "is_available", lambda: bool(capability))
        self._patch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        self._patch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")


def test_current_is_the_local_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, "tensorrt_rtx", "tensorrt")
    gpu.set()
    with pytest.raises(EngineError, match="no GPU here; name what to build for: sm75"):
        choose_target("current")
    gpu.set(8, 9)
    assert choose_target("current") is TARGETS["sm89"]
    assert choose_target("current", "tensorrt").library == "tensorrt"
    gpu.set(9, 0)
    assert choose_target("current") == Target(name="sm90", library="tensorrt", gpu="NVIDIA H200")
    with pytest.raises(EngineError, match=r"this GPU is sm90, .* use --trt_library tensorrt"):
        choose_target("current", "tensorrt_rtx")


def test_data_centre_library_builds_for_the_gpu_at_hand_alone() -> None:
    with pytest.raises(EngineError, match="--target=sm80: --trt_library tensorrt builds for the GPU at hand"):
        choose_target("sm80", "tensorrt")


def test_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    gpu.set()
    with pytest.raises(EngineError, match=r"neither tensorrt_rtx nor tensorrt is installed here; install"):
        choose_target("sm80")
    if importlib.util.find_spec("tensorrt") is None:
        with pytest.raises(EngineError, match=r"tensorrt: not installed here; install rankforge\[tensorrt\]"):
            load_library("tensorrt")


def test_build_that_would_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_free_bytes", lambda: 1000)
    with pytest.raises(EngineError, match="of them are missing; use --strip-plan"):
        built("gpt2", "sm80")
    assert building._free_bytes() == 1000


def test_what_the_builder_refuses_is_an_error_with_its_reason() -> None:
    lowered: Network = network(spec_of("gpt2"), Mapping(), 0, trt, strip=True, dtype=torch.float16)
    with pytest.raises(EngineError, match=r"TensorRT cannot build this model: .*Error"):
        build_plan(lowered, choose_target("sm80"))


def test_package_is_read_without_tensorrt() -> None:
    """Only `load_library` imports it."""
    folder = Path(building.__file__).parent
    assert not [file.name for file in folder.glob("*.py") if "import tensorrt" in file.read_text()]
