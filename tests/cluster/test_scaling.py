"""The node types of ray_config.yaml come when a build or ranks need them and go when they are idle.

Ray's autoscaler decides that; its nodes are raylets of this machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.own_ray import NODE_TYPE, own_ray
from tests.cluster.run_engines import LIMITS, flags, make
from tests.cluster.test_ray_config import CONFIG, TYPES, WORKERS

pytestmark = pytest.mark.slow

HEAD = "ray.head.default"
"""As the provider of fake nodes calls it."""

FOUR_GPU_RANKS = """
import sys, time, ray
from actors.open_generator import room_for
from actors.rank_actors import RankActors
ray.init(address=sys.argv[1], log_to_driver=False)
ranks = RankActors(range(4), room_for("sm89"))
(group,) = (name for name, one in ray.util.placement_group_table().items() if one["state"] != "REMOVED")
end = time.monotonic() + 100
while (placed := ray.util.placement_group_table()[group])["state"] != "CREATED" and time.monotonic() < end:
    time.sleep(0.1)
print(placed["state"], len(set(placed["bundles_to_node_id"].values())), len(placed["bundles"]))
ranks.close()
"""
"""There is no GPU for the actors themselves, only for their places."""


def scaling() -> dict[str, Any]:
    """What ray_config.yaml says, but for machines; and nodes are idle sooner."""
    kinds = {name: {**kind, "node_config": {}, "labels": {NODE_TYPE: name}} for name, kind in WORKERS.items()}
    for kind in kinds.values():
        kind["resources"] = kind["resources"] | {"object_store_memory": 80 << 20}
        for command in ("docker", "worker_setup_commands"):
            kind.pop(command, None)
    kinds[HEAD] = TYPES[CONFIG["head_node_type"]] | {"node_config": {}, "max_workers": 0}
    fake = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    rest = {name: CONFIG[name] for name in ("cluster_name", "max_workers", "upscaling_speed")}
    commands = "setup head_setup worker_setup initialization head_start_ray worker_start_ray".split()
    return (
        rest
        | {f"{name}_commands": [] for name in commands}
        | {"provider": fake, "available_node_types": kinds, "head_node_type": HEAD, "auth": {}}
        | {"idle_timeout_minutes": 0.05, "file_mounts": {}, "cluster_synced_files": []}
    )


def test_ranks_bring_nodes_and_idle_nodes_go(tmp_path: Path) -> None:
    make(tmp_path)
    engine = tmp_path / "engine"
    with own_ray(num_cpus=TYPES[CONFIG["head_node_type"]]["resources"]["CPU"], scaling=scaling()) as ray:
        assert ray.nodes_ever() == []

        build = ("build", "--model_dir", tmp_path / "model", "--output_dir", engine, "--tp_size", 2)
        small = (*flags(**LIMITS), "--dtype", "float32", "--no_compile", "--tokens_per_block", 8)
        done = ray.run("-m", "cluster", *build, *small, "--address", ray.address)
        assert done.returncode == 0, done.stderr
        assert ray.nodes_ever() == ["cpu-build"]
        ray.wait_for([], timeout_s=60)

        run = ("-m", "cluster", "run", "--engine_dir", engine, "--max_output_len", 4, "--json")
        done = ray.run(*run, "--input_text", "hello", "--address", ray.address)
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)["results"]
        assert found["outputs"][0]["tokens"]
        assert ray.nodes_ever() == ["cpu-build"] * 2
        ray.wait_for([], timeout_s=60)

        done = ray.run("-c", FOUR_GPU_RANKS, ray.address)
        assert done.stdout == "CREATED 1 4\n", done.stderr
        assert ray.nodes_ever() == ["cpu-build", "cpu-build", "gpu-serve"]
        ray.wait_for([], timeout_s=60)
