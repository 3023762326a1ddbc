"""`rankforge summarize` with an engine of several ranks, on a cluster that runs already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from tests.cluster.summarize_case import save_articles, save_engine, save_model
from tests.cluster.test_cli import rankforge


@pytest.mark.usefixtures("local_ray")
def test_all_ranks_summarize_as_transformers_does(tmp_path: Path) -> None:
    model, articles = save_model(tmp_path / "model"), save_articles(tmp_path / "articles.jsonl")
    engine = save_engine(model, tmp_path / "engine", tp_size=2, pp_size=2)
    models = ("--test_engine", "--engine_dir", engine, "--test_hf", "--hf_model_dir", model)
    sizes = ("--max_input_length", 20, "--output_len", 16, "--batch_size", 3, "--eval_ppl")
    address = ray.get_runtime_context().gcs_address
    done = rankforge(
        "summarize", *models, "--dataset", articles, *sizes, "--address", address, "--json", timeout_s=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same_tokens"] == found["articles"] == 7
    assert found["engine"]["rouge"] == found["transformers"]["rouge"]
    ours, theirs = (found[name]["perplexity"][0] for name in ("engine", "transformers"))
    assert ours == pytest.approx(theirs, rel=1e-4)
