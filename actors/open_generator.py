"""A generator for an engine: in this process where it is of one rank, on Ray where it is of several."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.cache_size import cache_limits, num_blocks
from actors.generator import Generator, Pace
from actors.rank_worker import RankSetup
from actors.ranks import Ranks, SoloRank
from actors.ray_start import start_ray
from actors.scheduler import Scheduler
from builders.engine_manifest import EngineManifest, read_engine
from builders.errors import EngineError

if TYPE_CHECKING:
    from actors.rank_actors import Room
    from actors.vigil import Bounds


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """How an engine is run."""

    num_blocks: int | None = None
    """Of the cache; None takes what the device has."""
    kv_cache_free_gpu_mem_fraction: float = 0.9
    """Of what the device has left after weights and the largest step."""
    draft_tokens: int = 0
    """Tokens to guess from the text itself in every step of a greedy text; 0 guesses none."""
    address: str | None = None
    """Of a running Ray cluster; without it several ranks start one of their own."""
    room: Room | None = None
    """What rank actors take of the cluster; None takes a GPU each where the engine is for one."""
    bounds: Bounds | None = None
    """How long ranks may take for what they do; None takes the usual."""


def open_generator(engine_dir: Path, options: GeneratorOptions | None = None) -> Generator:
    """Returns when all ranks have loaded."""
    options = options or GeneratorOptions()
    manifest, ends = read_engine(engine_dir), ends_of(engine_dir)
    ranks, blocks = _ranks(engine_dir, manifest, ends, options)
    return planned(ranks, blocks, manifest, ends, draft_tokens=options.draft_tokens)


def planned(
    ranks: Ranks, num_blocks: int, manifest: EngineManifest, ends: tuple[int, ...], *, draft_tokens: int = 0
) -> Generator:
    """Ranks that have loaded an engine, with a scheduler."""
    lanes = manifest.checkpoint.mapping.pp_size
    limits, ahead = cache_limits(manifest), lanes == 1
    scheduler = Scheduler(limits, num_blocks, eos=ends, lanes=lanes, draft_tokens=draft_tokens, ahead=ahead)
    steps = lanes if lanes > 1 or manifest.target == "cpu" else 2
    return Generator(ranks, scheduler, Pace(steps=steps, fed=lanes > 1), manifest, frozenset(ends))


def _ranks(
    engine_dir: Path, manifest: EngineManifest, ends: tuple[int, ...], options: GeneratorOptions
) -> tuple[Ranks, int]:
    def blocks(free_bytes: int | None) -> int:
        return options.num_blocks or num_blocks(manifest, free_bytes, options.kv_cache_free_gpu_mem_fraction)

    if manifest.checkpoint.mapping.world_size > 1 or options.address:
        return _group(engine_dir, manifest, ends, options, blocks)
    count = blocks(_free_bytes(manifest))
    return SoloRank(RankSetup(engine_dir=engine_dir, rank=0, num_blocks=count, ends=ends)), count


def _group(
    engine_dir: Path,
    manifest: EngineManifest,
    ends: tuple[int, ...],
    options: GeneratorOptions,
    blocks: Callable[[int | None], int],
) -> tuple[Ranks, int]:
    import ray  # one rank does without

    from actors.rank_group import GroupPlan, RankGroup
    from actors.vigil import Bounds

    room = options.room or room_for(manifest.target)
    inside = room.num_gpus == 0
    actors = manifest.checkpoint.mapping.world_size - inside
    if options.address is None:
        if not ray.is_initialized():
            cpus = max(os.cpu_count() or 1, math.ceil(actors * room.num_cpus))
            start_ray(num_cpus=cpus)
        _check_room(engine_dir, {name: actors * each for name, each in room.bundle.items()})
    elif not ray.is_initialized():
        ray.init(address=options.address, log_to_driver=False)
    plan = GroupPlan(
        engine_dir=engine_dir,
        blocks=blocks,
        ends=ends,
        inside=inside,
        room=room,
        bounds=options.bounds or Bounds(),
    )
    group = RankGroup(plan)
    return group, group.num_blocks


def _check_room(engine_dir: Path, needed: Mapping[str, float]) -> None:
    """Only a cluster with an address may grow: here a wait for more would be in vain."""
    import ray

    here = ray.cluster_resources()
    for name, number in needed.items():
        if number > (has := here.get(name, 0)):
            raise EngineError(
                f"{engine_dir}: its ranks take {number:g} {name}s, and there are {has:g} here; "
                "name a cluster that has more with --address, or build for fewer ranks"
            )


def room_for(target: str) -> Room:
    """What each rank of an engine for a target takes of a cluster."""
    from actors.rank_actors import Room

    return Room(num_gpus=0 if target == "cpu" else 1)


def _free_bytes(manifest: EngineManifest) -> int | None:
    import torch

    return None if manifest.target == "cpu" else torch.cuda.mem_get_info()[0]


def ends_of(folder: Path) -> tuple[int, ...]:
    """The tokens that end a text, as the model's own settings have them, or else its tokenizer."""
    settings = folder / "generation_config.json"
    found = json.loads(settings.read_text()).get("eos_token_id") if settings.exists() else None
    if found is None:
        return _tokenizers_end(folder / "tokenizer")
    return tuple(found) if isinstance(found, list) else (found,)


def _tokenizers_end(folder: Path) -> tuple[int, ...]:
    settings, file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    if not (settings.exists() and file.exists()):
        return ()
    from tokenizers import Tokenizer

    end = json.loads(settings.read_text()).get("eos_token")
    text = end.get("content") if isinstance(end, dict) else end
    token = Tokenizer.from_file(str(file)).token_to_id(text) if text else None
    return () if token is None else (token,)
