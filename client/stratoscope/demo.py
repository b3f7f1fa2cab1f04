"""The demonstration: the whole loop on a small real model, with nothing simulated."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from stratoscope.client import Client
from stratoscope.collection import collect
from stratoscope.experiments import EXPERIMENTS, Experiment, load_experiment
from stratoscope.local_server import local_server
from stratoscope.probing import probe_run
from stratoscope.progress import progress_bar
from stratoscope.reporting import report_runs, summarise_result
from stratoscope.store.run import Run

SITES: Final = ("resid_post", "attn_out", "mlp_out")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """What the demonstration brought.

    Attributes
    ----------
    peaks
        Peak layer and score of every target at every site, with the experiment's name.
    report
        Path of the HTML report.
    """

    peaks: pl.DataFrame
    report: Path


def run_demo(out: Path, *, server: str | None = None, model: str = "smollm2-135m", say: Say) -> DemoOutcome:
    """Collect the three built-in experiments at every layer, probe them and draw the report.

    A second call finds the activations there and only fits and draws again.

    Parameters
    ----------
    out
        Folder for the runs and the report.
    server
        Address of a running server; ``None`` starts one with `model` in float32.
    say
        Receives a line when a stage begins or ends.

    Raises
    ------
    StratoscopeError
        If a stage fails; what was collected stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _server(out, server, model, say) as client:
        card = client.model()
        say(f"model {card.model}: {card.n_layers} layers, d_model {card.d_model}, {card.dtype}")
        with _timed("collected", say):
            runs = [_collect(experiment, out, client) for experiment in EXPERIMENTS]
    with _timed("probed", say):
        peaks = [_probe(experiment, run) for experiment, run in zip(EXPERIMENTS, runs, strict=True)]
    with _timed("drawn", say):
        report = report_runs([run.path for run in runs], out)
    return DemoOutcome(pl.concat(peaks), report)


@contextmanager
def _server(out: Path, server: str | None, model: str, say: Say) -> Iterator[Client]:
    if server is not None:
        with Client(server) as client:
            yield client
        return
    say(f"starting a server with {model}; its log is {out / 'server.log'}")
    flags = ["--engine", "torch", "--model", model, "--dtype", "float32"]
    began = time.monotonic()
    with local_server(flags, out / "server.log", say=say) as client:
        say(f"server ready in {time.monotonic() - began:.0f} s")
        yield client


def _collect(experiment: Experiment, out: Path, client: Client) -> Run:
    table = load_experiment(experiment.name)
    path = out / experiment.name
    with progress_bar(f"collecting {experiment.name}") as bar:
        collect(
            table,
            path,
            client,
            sites=SITES,
            progress=lambda counts: bar(counts.already_there + counts.fetched, counts.total),
        )
    return Run.open(path)


def _probe(experiment: Experiment, run: Run) -> pl.DataFrame:
    peaks = []
    for target in experiment.targets:
        with progress_bar(f"probing {experiment.name}: {target.label}") as bar:
            result = probe_run(run, target, progress=bar)
        peaks.append(summarise_result(result, run).peaks)
    return pl.concat(peaks).with_columns(experiment=pl.lit(experiment.name))


@contextmanager
def _timed(what: str, say: Say) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{what} in {time.monotonic() - began:.0f} s")
