"""How the cost grows: with texts, tokens, layers and sites, with stimuli in a ledger, with n and d of a fit.

Of each the exponent is fitted: the slope of log time over log size, with the 95 % interval of the regression. A fixed
cost makes it smaller than the growth at large sizes: above 1 is a fault, well below 1 the sizes are too small to tell.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from probes import ALPHAS, Layers, engine
from scipy import stats

from stratoscope import Client
from stratoscope.collection import collect
from stratoscope.planning import plan_collection
from stratoscope.stimuli import StimulusTable
from stratoscope.store.run import Run
from stratoscope.store.writer import RunWriter
from throughput.figure import Figure
from throughput.made import Made
from throughput.processes import served

SITES = ("resid_post", "attn_out", "mlp_out")


def measure(
    *,
    texts: Sequence[int] = (64, 128, 256, 512),
    tokens: Sequence[int] = (16, 32, 64, 128),
    layers: Sequence[int] = (2, 4, 8, 12),
    stimuli: Sequence[int] = (500, 1000, 2000, 4000),
    fit_n: Sequence[int] = (100, 200, 400),
    fit_d: Sequence[int] = (128, 256, 512),
    rounds: int = 3,
    engine_flags: Sequence[str] = ("--engine", "synthetic"),
) -> list[Figure]:
    """Measure every growth. Up to 100,000 `stimuli` are documented."""
    with tempfile.TemporaryDirectory() as name, served(Path(name), *engine_flags) as (url, _), Client(url) as client:
        job = _Job(Path(name), client)
        grown = {
            "collect, texts": (texts, lambda n: lambda: job.collect(n, 24, 4, SITES[:1])),
            "collect, tokens per text": (tokens, lambda n: lambda: job.collect(64, n, 4, SITES[:1])),
            "collect, layers": (layers, lambda n: lambda: job.collect(256, 24, n, SITES)),
            "collect, sites": ((1, 2, 3), lambda n: lambda: job.collect(256, 24, 12, SITES[:n])),
            "plan, texts": (texts, lambda n: lambda: plan_collection(_table(n, 24), client)),
        }
        figures = [figure for what, (sizes, make) in grown.items() for figure in _growth(what, sizes, make, rounds)]
        figures += _ledgers(Path(name), stimuli, rounds)
    figures += _growth("fit, n", fit_n, lambda n: _fit(n, 256), rounds)
    return figures + _growth("fit, d", fit_d, lambda d: _fit(200, d), rounds)


class _Job:
    """Collections into ever new runs."""

    def __init__(self, folder: Path, client: Client) -> None:
        self._folder, self._client, self._n_runs = folder, client, 0

    def collect(self, n_texts: int, n_tokens: int, n_layers: int, sites: Sequence[str]) -> None:
        self._n_runs += 1
        collect(
            _table(n_texts, n_tokens),
            self._folder / f"run{self._n_runs}",
            self._client,
            sites=sites,
            layers=list(range(n_layers)),
            select=["all"],
        )


def _table(n_texts: int, n_tokens: int) -> StimulusTable:
    rows = [
        {"id": f"s{index}", "text": " ".join(f"w{index}x{word}" for word in range(n_tokens - 1))}
        for index in range(n_texts)
    ]
    return StimulusTable.from_rows(rows, [row["id"] for row in rows], "made")


def _ledgers(folder: Path, stimuli: Sequence[int], rounds: int) -> list[Figure]:
    """Time what a run of many stimuli costs before its first request: entering, resuming, opening."""
    runs = {n: (Made(n, 1, 8), folder / f"ledger{n}") for n in stimuli}
    for made, run_dir in runs.values():
        with RunWriter(run_dir, made.measurement) as writer:
            writer.enter(made.table)
            for batches in made.shards(max(1, made.n_stimuli // 4)):
                writer.commit(batches)

    def resume(n: int) -> Callable[[], None]:
        def work() -> None:
            made, run_dir = runs[n]
            with RunWriter(run_dir, made.measurement) as writer:
                writer.enter(made.table)
                writer.stimuli()

        return work

    def read(n: int) -> Callable[[], Any]:
        return lambda: Run.open(runs[n][1]).activations()["resid_post", 0]

    return [
        *_growth("resume, stimuli", stimuli, resume, rounds),
        *_growth("open and read, stimuli", stimuli, read, rounds),
    ]


def _fit(n: int, d: int) -> Callable[[], Any]:
    layers = Layers(n, d, 2)
    return lambda: engine(layers, layers.graded, "ridge", n_jobs=1, alpha=ALPHAS)


def _growth(what: str, sizes: Sequence[int], make: Callable[[int], Callable[[], Any]], rounds: int) -> list[Figure]:
    """Time work of several sizes in turn, and fit the exponent."""
    works = {size: make(size) for size in sizes}
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size, work in works.items():
            began = time.perf_counter()
            work()
            if number:
                seconds[size].append(time.perf_counter() - began)
    size_name = what.split(", ")[1]
    figures = [
        Figure("scale", "stratoscope", f"{what} = {size}", "s", tuple(took), {size_name: size})
        for size, took in seconds.items()
    ]
    exponent, low, high = fit_exponent(sizes, [float(np.median(seconds[size])) for size in sizes])
    return [
        *figures,
        Figure("scale", "stratoscope", f"exponent of {what}", "1", (exponent,)),
        Figure("scale", "stratoscope", f"exponent of {what}, low", "1", (low,)),
        Figure("scale", "stratoscope", f"exponent of {what}, high", "1", (high,)),
    ]


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return the slope of log time over log size, and its 95 % interval."""
    found = stats.linregress(np.log(sizes), np.log(seconds))
    half = float(stats.t.ppf(0.975, len(sizes) - 2) * found.stderr)
    return float(found.slope), float(found.slope) - half, float(found.slope) + half
