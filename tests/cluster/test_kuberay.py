"""docs/kuberay.yaml: the cluster of ray_config.yaml, as Ray's autoscaler reads it, within KubeRay's rules."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tests.cluster.test_ray_config import CONFIG, WORKERS

DOCS = Path(__file__).parent.parent.parent / "docs"
CLAIM, CLUSTER = yaml.safe_load_all((DOCS / "kuberay.yaml").read_text())
(JOB,) = yaml.safe_load_all((DOCS / "kuberay_job.yaml").read_text())
SPEC: dict[str, Any] = CLUSTER["spec"]

LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""DNS-1035: names of pods and services are made of these."""

FIELDS = {
    "cluster": "authOptions autoscalerOptions enableInTreeAutoscaling headGroupSpec rayVersion "
    "workerGroupSpecs",
    "authOptions": "mode secretName",
    "autoscalerOptions": "idleTimeoutSeconds upscalingMode version",
    "head": "rayStartParams template",
    "worker": "groupName maxReplicas minReplicas rayStartParams replicas template",
    "job": "clusterSelector entrypoint",
}
"""Those of KubeRay's reference for ray.io/v1 that are used here: an unknown one is dropped without a word."""


GROUPS = [SPEC["headGroupSpec"], *SPEC["workerGroupSpecs"]]


def derived() -> dict[str, Any]:
    cluster = copy.deepcopy(CLUSTER)
    cluster["metadata"]["namespace"] = "default"
    return _derive_autoscaling_config_from_ray_cr(cluster)


def test_the_autoscaler_reads_the_same_node_types() -> None:
    found = derived()["available_node_types"]
    head = found.pop("headgroup")
    assert head["resources"]["CPU"] == 0
    keys = ("min_workers", "max_workers")
    for kind in found.values():
        kind["resources"].pop("memory")
    assert {name: (kind["resources"], *(kind[key] for key in keys)) for name, kind in found.items()} == {
        name: (kind["resources"], *(kind[key] for key in keys)) for name, kind in WORKERS.items()
    }


def test_nodes_go_after_the_same_time() -> None:
    assert derived()["idle_timeout_minutes"] == CONFIG["idle_timeout_minutes"]
    assert derived()["max_workers"] == CONFIG["max_workers"]


def test_kind_and_fields_are_kuberays() -> None:
    assert {CLUSTER["apiVersion"], JOB["apiVersion"]} == {"ray.io/v1"}
    assert (CLUSTER["kind"], JOB["kind"]) == ("RayCluster", "RayJob")
    used = {
        "cluster": SPEC,
        "authOptions": SPEC["authOptions"],
        "autoscalerOptions": SPEC["autoscalerOptions"],
        "head": SPEC["headGroupSpec"],
        "job": JOB["spec"],
    }
    assert {name: sorted(found) for name, found in used.items()} == {
        name: FIELDS[name].split() for name in used
    }
    assert {" ".join(sorted(group)) for group in SPEC["workerGroupSpecs"]} == {FIELDS["worker"]}


def test_names_can_be_those_of_pods() -> None:
    names = [CLUSTER["metadata"]["name"], JOB["metadata"]["generateName"] + "x"]
    names += [group["groupName"] for group in SPEC["workerGroupSpecs"]]
    assert [name for name in names if not LABEL.fullmatch(name)] == []


def test_a_token_is_asked_for_as_the_operator_wants_it() -> None:
    """It refuses `token` without a version of Ray, and the second autoscaler with pods that start again."""
    assert SPEC["authOptions"] == {"mode": "token", "secretName": "rankforge-token"}
    assert f"ray:{SPEC['rayVersion']}-" in CONFIG["docker"]["image"]
    assert f"secret generic {SPEC['authOptions']['secretName']} " in (DOCS / "kuberay.yaml").read_text()
    assert SPEC["autoscalerOptions"]["version"] == "v2"
    assert {group["template"]["spec"]["restartPolicy"] for group in GROUPS} == {"Never"}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_every_pod_mounts_the_store(group: dict[str, Any]) -> None:
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["store"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert f"--volume {mounts['store']}:{mounts['store']}" in CONFIG["docker"]["run_options"]
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_job_runs_on_that_cluster_with_what_lies_in_the_store() -> None:
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    words = JOB["spec"]["entrypoint"].split()
    assert words[0] == "rankforge" and words[words.index("--engine_dir") + 1].startswith("/mnt/rankforge/")
