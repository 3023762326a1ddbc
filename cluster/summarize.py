"""`rankforge summarize`: the same articles to an engine and to Transformers, side by side."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from actors.open_generator import GeneratorOptions, open_generator
from cluster.judging import Judged, judged
from cluster.progress import Reporter
from cluster.ray_cluster import join, warn_of_open_door
from cluster.summaries import Summarizer
from cluster.summarize_engine import EngineSummarizer
from cluster.summarize_hf import HfSummarizer
from cluster.summarize_job import ENGINE, TRANSFORMERS, Job, prepared
from cluster.summarize_options import SummarizeOptions
from cluster.summarize_report import Column, SummarizeResult


def summarize(options: SummarizeOptions, report: Reporter) -> SummarizeResult:
    """Check everything, then let one model after the other have the machine for itself."""
    job = prepared(options)
    columns = [_column(name, job, report) for name in job.names]
    return SummarizeResult(articles=job.articles, prompts=job.prompts, columns=tuple(columns))


def _column(name: str, job: Job, report: Reporter) -> Column:
    gc.collect()  # a model before this one may lie in cycles, with a device's memory
    began = time.monotonic()
    with _OPENED[name](job) as summarizer:
        load_s = time.monotonic() - began
        # Warms up with another beginning: nothing of an article is in the cache before its turn.
        summarizer.summarize([job.prompts[0][1:] or job.prompts[0]])
        report.start([100 * len(job.batches)], f"summarize with {name}", "percent")
        try:
            done = [_batch(name, summarizer, job, batch, report) for batch in job.batches]
        finally:
            report.finish()
    return Column(
        name=name,
        load_s=load_s,
        batch_s=tuple(seconds for seconds, _ in done),
        judged=tuple(one for _, found in done for one in found),
    )


def _batch(
    name: str, summarizer: Summarizer, job: Job, batch: slice, report: Reporter
) -> tuple[float, list[tuple[Judged, ...]]]:
    """How long it took, and what each article's summaries are worth."""
    articles, prompts = job.articles[batch], job.prompts[batch]
    began = time.monotonic()
    summaries = summarizer.summarize(prompts)
    seconds = time.monotonic() - began
    rows = zip(articles, prompts, summarizer.scored(prompts, summaries), strict=True)
    found = [judged(*row, job.scorer) for row in rows]
    job.files.add(name, batch.start, articles, found)
    report.advance(0, 100)
    return seconds, found


@contextmanager
def _engine(job: Job) -> Iterator[Summarizer]:
    options = job.options
    how = GeneratorOptions(
        kv_cache_free_gpu_mem_fraction=options.kv_cache_free_gpu_memory_fraction,
        address=join(options.address),
    )
    assert options.engine_dir, "checked with the options"
    with open_generator(options.engine_dir, how) as generator:
        warn_of_open_door(sys.stderr)
        yield EngineSummarizer(generator, job.tokenizer, job.params, wants_logprobs=options.eval_ppl)


@contextmanager
def _transformers(job: Job) -> Iterator[Summarizer]:
    assert job.model, "fetched with the other inputs"
    model = HfSummarizer(
        job.model,
        job.tokenizer,
        job.params,
        dtype=job.dtype,
        spread=job.options.hf_device_map_auto,
        ends=job.ends,
        wants_logprobs=job.options.eval_ppl,
    )
    try:
        yield model
    finally:
        model.close()


_OPENED: dict[str, Callable[[Job], AbstractContextManager[Summarizer]]] = {
    ENGINE: _engine,
    TRANSFORMERS: _transformers,
}
