"""ray_config.yaml: what Ray's cluster launcher makes of it, and which nodes the project's actors fit."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from actors.open_generator import room_for

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "ray_config.yaml").read_text())
TYPES: dict[str, dict[str, Any]] = CONFIG["available_node_types"]
WORKERS = {name: kind for name, kind in TYPES.items() if name != CONFIG["head_node_type"]}
BUNDLES = {target: room_for(target).bundle for target in ("cpu", "sm89")}


def fits(bundle: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in bundle.items())


def test_ray_accepts_it() -> None:
    prepared = prepare_config(copy.deepcopy(CONFIG))
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == TYPES.keys()
    assert not [command for command in prepared["worker_setup_commands"] if "ray-wheels" in command]


@pytest.mark.parametrize("change", [{"idle_timeout": 5}, {"max_workers": -1}, {"provider": {}}])
def test_rays_schema_refuses_mistakes(change: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(CONFIG))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared | change)


def test_it_starts_with_the_head_alone_and_has_room_for_all_types_at_their_largest() -> None:
    assert {kind["min_workers"] for kind in WORKERS.values()} == {0}
    assert sum(kind["max_workers"] for kind in WORKERS.values()) == CONFIG["max_workers"]


def test_the_head_takes_no_ranks_and_every_rank_has_a_node_type() -> None:
    head = TYPES[CONFIG["head_node_type"]]["resources"]
    assert not any(fits(bundle, head) for bundle in BUNDLES.values())
    hosts = {target: {name for name in WORKERS if fits(bundle, WORKERS[name]["resources"])}
             for target, bundle in BUNDLES.items()}  # fmt: skip
    assert hosts == {"cpu": set(WORKERS), "sm89": {"gpu-build", "gpu-serve"}}


def test_every_gpu_of_a_node_can_have_its_rank() -> None:
    bundle = BUNDLES["sm89"]
    for name in ("gpu-build", "gpu-serve"):
        resources = WORKERS[name]["resources"]
        ranks = resources["GPU"] / bundle["GPU"]
        assert ranks >= 1 and resources["CPU"] >= ranks * bundle["CPU"]


def test_nodes_have_nothing_that_no_actor_asks_for() -> None:
    asked = {name for bundle in BUNDLES.values() for name in bundle}
    named = {name for kind in TYPES.values() for name in kind["resources"]}
    assert {name for name in named - asked if not name.startswith("accelerator_type:")} == set()


def test_engines_are_built_on_the_gpu_that_serves_them() -> None:
    kinds = [
        {name for name in kind["resources"] if name.startswith("accelerator_type:")}
        for kind in (WORKERS["gpu-build"], WORKERS["gpu-serve"])
    ]
    assert kinds[0] == kinds[1] != set()


def installed(commands: list[str]) -> list[Requirement]:
    """What `pip install` gets as the project, of what these run."""
    folders = "|".join(map(re.escape, CONFIG["file_mounts"]))
    found = re.findall(rf'pip install .*?"?(?:{folders})(\[[a-z,]+\])?"?$', "\n".join(commands), re.MULTILINE)
    return [Requirement(f"rankforge{extras}") for extras in found]


@pytest.mark.parametrize(
    ("name", "extras"), [("cpu-build", set()), ("gpu-build", {"gpu"}), ("gpu-serve", {"gpu"})]
)
def test_every_node_installs_the_project_with_what_its_kind_needs(name: str, extras: set[str]) -> None:
    (project,) = installed(WORKERS[name]["worker_setup_commands"])
    assert project.extras == extras <= PROJECT["optional-dependencies"].keys()


def test_the_head_installs_the_project() -> None:
    (project,) = installed(CONFIG["head_setup_commands"])
    assert project.extras <= PROJECT["optional-dependencies"].keys()
    assert CONFIG["file_mounts"]["/home/ray/rankforge"] == "."


def test_images_have_a_python_and_a_ray_that_the_project_takes() -> None:
    images = {CONFIG["docker"]["image"]} | {
        kind["docker"]["worker_image"] for kind in WORKERS.values() if "docker" in kind
    }
    (ray,) = (found for line in PROJECT["dependencies"] if (found := Requirement(line)).name == "ray")
    (least,) = re.findall(r">=3\.(\d+)", PROJECT["requires-python"])
    assert {bool("-gpu" in image) for image in images} == {True, False}
    for image in images:
        version, minor = re.fullmatch(r"rayproject/ray:([0-9.]+)-py3(\d+)(?:-gpu)?", image).groups()  # type: ignore[union-attr]
        assert ray.specifier.contains(version) and int(minor) >= int(least)


def test_every_node_asks_for_the_token_that_it_is_given() -> None:
    assert "--env RAY_AUTH_MODE=token" in CONFIG["docker"]["run_options"]
    assert CONFIG["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in CONFIG["head_start_ray_commands"][-1]


def test_containers_see_the_storage_that_machines_mount() -> None:
    mounts = [command for command in CONFIG["initialization_commands"] if "mount -t" in command]
    (volume,) = (option.split()[1] for option in CONFIG["docker"]["run_options"] if "--volume" in option)
    outside, inside = volume.split(":")
    assert len(mounts) == 1 and mounts[0].endswith(f" {outside}") and inside == outside
