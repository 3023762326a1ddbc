"""The options of commands that may work on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.options import option

CLUSTER = "Cluster"


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where the work is done."""

    address: str | None = option(
        None,
        help="A running Ray cluster that works, such as 10.0.0.1:6379, or auto; local: one of this "
        "machine, which ends with the command; by default processes of this machine do, and in a job that "
        "Ray started its own cluster.",
        group=CLUSTER,
    )
    store_dir: str | None = option(
        None,
        help="Where programs and converted ranks are kept and found again: a folder, which all nodes of a "
        "cluster must see under this path, or a URL that machines share, such as s3://bucket/store. By "
        "default .rankforge-store beside the output; a conversion on this machine keeps nothing then.",
        group=CLUSTER,
    )
    store_cache: Path | None = option(
        None,
        help="Folder in front of a store that is a URL, each machine's own; beside the output by default.",
        group=CLUSTER,
    )
    workers: int | None = option(
        None,
        help="Workers at the same time. By default one, or one for every core where kernels for CUDA are "
        "compiled; on a cluster as many as it has room for.",
        group=CLUSTER,
        least=1,
    )
    worker_resources: list[str] = option(
        [],
        help="On a cluster, what else a worker takes of its node, as name=amount; repeatable.",
        group=CLUSTER,
    )
