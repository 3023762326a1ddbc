"""What Ray Serve runs on the cluster, asked often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from cluster.serve_config import model_name


def applications() -> dict[str, ApplicationStatusOverview]:
    """As `serve.status()` says, which takes ten times as long: 30 ms in which no token gets through."""
    client = _get_global_client()
    assert client is not None, "it raises where Serve is not there"
    found: Mapping[str, Any] = client.get_serve_details()["applications"]
    return {model_name(name): _status(app) for name, app in found.items()}


def _status(app: Mapping[str, Any]) -> ApplicationStatusOverview:
    deployments = {
        name: DeploymentStatusOverview(
            status=DeploymentStatus(one["status"]),
            status_trigger=DeploymentStatusTrigger(one["status_trigger"]),
            replica_states=Counter(replica["state"] for replica in one["replicas"]),
            message=one["message"],
        )
        for name, one in app["deployments"].items()
    }
    return ApplicationStatusOverview(
        status=ApplicationStatus(app["status"]),
        message=app["message"],
        last_deployed_time_s=app["last_deployed_time_s"],
        deployments=deployments,
    )
