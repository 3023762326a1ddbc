"""What choosing tokens costs a step, beside one argmax and one softmax of the same logits.

    python -m benchmarks.sampling [--device cuda] [--vocabulary 128256] [--batches 1 16 64 256]

Microseconds, the median of five rounds. On a CUDA device every case is a CUDA graph, so launches
cost what they cost in a decoding step, and `eager` is the same without one; a case whose graph cannot be
captured would say so by failing. There, a second table has the greedy choice alone: by our kernels, by
PyTorch in parts and at once, and the time that reading the logits takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from actors.sampler import Sampler, in_parts
from actors.sampling_params import SamplingParams
from benchmarks.roofline import measured_rates
from builders.kernels.aot import compile_source
from builders.kernels.call import Source
from builders.kernels.driver import Kernels
from builders.kernels.likeliest import LIKELIEST_CONFIG, likeliest

CASES: Mapping[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8, seed=1),
    "top_k 50": SamplingParams(temperature=0.8, top_k=50, seed=1),
    "min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05, seed=1),
    "top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9, seed=1),
    "greedy, penalties": SamplingParams(temperature=0, presence_penalty=0.5, repetition_penalty=1.1),
    "greedy, 5 log-probabilities": SamplingParams(temperature=0, logprobs=5),
}


def main() -> None:
    """A line for every batch and case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=0.3, help="for every number, about")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{options.threads} threads"
    print(f"{device.type}, {name}, torch {torch.__version__}, vocabulary {options.vocabulary}")
    print(f"{'batch':>5}  {'case':<28}{'us':>10}{'eager us':>10}{'x argmax':>10}")
    for batch in options.batches:
        bench_batch(batch, options.vocabulary, device, options.seconds)
    if device.type == "cuda":
        bench_likeliest(options.batches, options.vocabulary, options.seconds)


def bench_likeliest(batches: Sequence[int], vocabulary: int, seconds: float) -> None:
    """The greedy choice, microseconds in a graph."""
    device = torch.device("cuda")
    rate = measured_rates("cuda", torch.bfloat16).read_bytes_per_s
    ways: dict[str, Callable[[Tensor], object]] = {
        "kernels": kernels_of(device),
        "in parts": in_parts,
        "argmax": lambda logits: logits.argmax(-1),
    }
    print(f"{'batch':>5}  {'logits':<10}" + "".join(f"{name:>10}" for name in (*ways, "limit")))
    for batch in batches:
        for dtype in (torch.bfloat16, torch.float32):
            logits = torch.randn(batch, vocabulary, device=device).to(dtype)
            runs = [captured_run(partial(way, logits)) for way in ways.values()]
            times = [microseconds(run, device, seconds) for run in runs]
            cells = "".join(f"{time:>10.1f}" for time in (*times, 1e6 * logits.nbytes / rate))
            print(f"{batch:>5}  {str(dtype).removeprefix('torch.'):<10}{cells}", flush=True)


def kernels_of(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Ours, compiled when they are first wanted, as an engine of this device has them."""
    major, minor = torch.cuda.get_device_capability(device)
    config, ready = replace(LIKELIEST_CONFIG, overlap=major >= 9), dict[Source, Kernels]()

    def tokens(logits: Tensor) -> Tensor:
        out = torch.empty(len(logits), dtype=torch.int64, device=device)
        for call in likeliest(logits, out=out, config=config):
            if call.source not in ready:
                ready[call.source] = Kernels([compile_source(call.source, 10 * major + minor)])
            ready[call.source].run([call])
        return out

    return tokens


def bench_batch(batch: int, vocabulary: int, device: torch.device, seconds: float) -> None:
    """All cases of one number of rows."""
    logits = torch.randn(batch, vocabulary, device=device) * 3
    runs: dict[str, Callable[[], object]] = {
        "one argmax": lambda: logits.argmax(-1),
        "one softmax": lambda: logits.softmax(-1),
        **{case: step_of(params, logits) for case, params in CASES.items()},
    }
    with torch.inference_mode():
        captured = {case: captured_run(run) if device.type == "cuda" else run for case, run in runs.items()}
        times = {case: microseconds(run, device, seconds) for case, run in captured.items()}
        eager = {
            case: microseconds(run, device, seconds)
            for case, run in runs.items()
            if run is not captured[case]
        }
    for case in runs:
        ratio = times[case] / times["one argmax"]
        print(
            f"{batch:>5}  {case:<28}{times[case]:>10.1f}{eager.get(case, times[case]):>10.1f}{ratio:>10.1f}",
            flush=True,
        )


def step_of(params: SamplingParams, logits: Tensor) -> Callable[[], object]:
    """A sampler all of whose slots have such a request."""
    batch, vocabulary = logits.shape
    sampler = Sampler(slots=batch, vocab_size=vocabulary, device=logits.device)
    for slot in range(batch):
        sampler.admit(slot, params, [1, 2, 3], index=slot)
    slots = torch.arange(batch, device=logits.device)
    positions = torch.full((batch,), 3, device=logits.device)
    return lambda: sampler.sample(logits, slots, positions)


def captured_run(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def microseconds(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median of at least five rounds of enough runs."""
    for _ in range(2):
        once = elapsed(run, device, 1)
    count = max(1, int(seconds / 5 / once))
    return statistics.median(elapsed(run, device, count) for _ in range(5)) / count * 1e6


def elapsed(run: Callable[[], object], device: torch.device, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
