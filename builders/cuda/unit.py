"""One unit of a CUDA build: the kernel of one site for one number of rows, chosen, compiled, stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from builders import kernels
from builders.cuda.example import ANY, Load, PromptTiles, example
from builders.cuda.launch import Launch
from builders.cuda.site import Site
from builders.cuda.table import KERNELS
from builders.cuda.target import Target
from builders.errors import EngineError
from builders.kernels.call import Call, Config, Source
from builders.kernels.driver import Compiled
from builders.kernels.linear import Scratch, ScratchSize
from builders.keys import Recipe
from builders.limits import Limits

CHOICE = "kernel.json"


@dataclass(frozen=True, kw_only=True)
class KernelPlan:
    """One choice to make; plain data that a worker can be sent."""

    site: Site
    rows: int
    limits: Limits
    target: Target
    recipe: Recipe


def plan_kernel(site: Site, rows: int, limits: Limits, target: Target) -> KernelPlan:
    """The content key: limits count only where candidates or the load they are timed with depend on them."""
    load = Load.of(rows, limits)
    inputs: dict[str, Any] = {
        "site": site.key(rows),
        "load": asdict(load),
        "candidates": [asdict(config) for config in candidates(site, rows, limits, target)],
        "target": asdict(target),
        "sources": sources_hash(),
        "triton": triton_version(),
    }
    return KernelPlan(
        site=site, rows=rows, limits=limits, target=target, recipe=Recipe("cuda-kernel", inputs)
    )


def candidates(site: Site, rows: int, limits: Limits, target: Target) -> Sequence[Config]:
    """In the order of their likelihood."""
    return KERNELS[site.op].configs(site, rows, limits, overlap=target.capability >= 90)


@cache
def sources_hash() -> str:
    """Of the kernels' own text and of what chooses and launches them."""
    digest = hashlib.sha256()
    for file in [
        *sorted(Path(kernels.__file__).parent.glob("*.py")),
        *sorted(Path(__file__).parent.glob("*.py")),
    ]:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def triton_version() -> str:
    """Of the compiler."""
    try:
        import triton
    except ImportError as error:
        raise EngineError("--target cuda: compiling kernels takes Triton; install rankforge[gpu]") from error
    return str(triton.__version__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and how fast it was where it was timed."""

    site: str
    """`Site.key` of what it was chosen for."""
    config: Config
    compiled: tuple[Compiled, ...]
    scratch: ScratchSize
    seconds: float | None


def calls_of(plan: KernelPlan, config: Config, args: Sequence[Any], out: Tensor, device: str) -> list[Call]:
    """A candidate's launches on example arguments."""
    kernel, load = KERNELS[plan.site.op], Load.of(plan.rows, plan.limits)
    tiles = PromptTiles(load, device) if plan.rows == ANY else None
    launch = Launch(scratch=new_scratch(kernel.scratch(config, args), device), tiles=tiles)
    return kernel.calls(config, args, out, launch)


def sources_of(plan: KernelPlan, config: Config) -> list[Source]:
    """What must be compiled for a candidate."""
    args = example(plan.site, Load.of(plan.rows, plan.limits), "meta")
    calls = calls_of(plan, config, args, KERNELS[plan.site.op].output(args), "meta")
    return list(dict.fromkeys(call.source for call in calls))


def new_scratch(size: ScratchSize, device: str) -> Scratch:
    """Zeroed, as counters must be before the first launch."""
    return Scratch(
        partial=torch.zeros(max(size.partial, 1), dtype=torch.float32, device=device),
        counters=torch.zeros(max(size.counters, 1), dtype=torch.int32, device=device),
    )


def write_choice(choice: Choice, folder: Path) -> None:
    """The choice and its machine code, file by file."""
    kernels = [_described(number, compiled) for number, compiled in enumerate(choice.compiled)]
    data = {
        "site": choice.site,
        "config": asdict(choice.config),
        "kernels": kernels,
        "scratch": asdict(choice.scratch),
        "seconds": choice.seconds,
    }
    for number, compiled in enumerate(choice.compiled):
        (folder / f"{number}.cubin").write_bytes(compiled.code)
    (folder / CHOICE).write_text(json.dumps(data, sort_keys=True))


def _described(number: int, compiled: Compiled) -> dict[str, Any]:
    return {
        "file": f"{number}.cubin",
        "source": compiled.source.to_json(),
        "capability": compiled.capability,
        "name": compiled.name,
        "shared_bytes": compiled.shared_bytes,
        "scratch_bytes": compiled.scratch_bytes,
    }


def read_choice(folder: Path) -> Choice:
    """The inverse of `write_choice`, for files whose hashes were checked."""
    data = json.loads((folder / CHOICE).read_text())
    return Choice(
        site=data["site"],
        config=Config(**data["config"]),
        compiled=tuple(_compiled(folder, entry) for entry in data["kernels"]),
        scratch=ScratchSize(**data["scratch"]),
        seconds=data["seconds"],
    )


def _compiled(folder: Path, entry: Mapping[str, Any]) -> Compiled:
    known = {name: entry[name] for name in ("capability", "name", "shared_bytes", "scratch_bytes")}
    source = Source.from_json(entry["source"])
    return Compiled(source=source, code=(folder / entry["file"]).read_bytes(), **known)
