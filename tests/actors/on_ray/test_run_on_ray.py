"""`rankforge run` on a cluster that runs already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from tests.cluster.run_engines import make
from tests.cluster.test_cli import rankforge


@pytest.mark.usefixtures("local_ray")
def test_ranks_are_placed_on_a_running_cluster(tmp_path: Path) -> None:
    made = make(tmp_path)
    address, before = ray.get_runtime_context().gcs_address, len(ray.util.placement_group_table())
    command = ("run", "--engine_dir", made.engine(tp_size=2), "--max_output_len", 8, "--json")
    done = rankforge(*command, "--input_text", "hello", "--address", address)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["results"]
    prompt = made.tokenizer.encode("hello")
    assert [found["outputs"][0]["tokens"]] == made.generated(prompt, max_new_tokens=8)
    assert len(ray.util.placement_group_table()) == before + 1
