"""The whole job, from texts to layer curves, against the script that a researcher would write."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from stratoscope import Client, Run
from stratoscope.collection import collect
from stratoscope.experiments import EXPERIMENTS, Experiment, load_experiment
from stratoscope.probes import SweepResult, sweep
from stratoscope.probes.classifiers import SVM_TOLERANCE
from stratoscope.probes.estimators import Settings
from throughput.figure import Figure
from throughput.ours import SITES, model_folder, served
from throughput.peer import BENCHMARKS, ENVIRONMENTS, PeerError

PLAIN: Final = "plain script"
SCRIPT: Final = "plain_script"
SCORE: Final = {"svm": "balanced_accuracy", "ridge": "r2"}
STAGES: Final = ("collect", "fit")

CHECKED: Final = (0, 15)
"""Layers at which the two sides' statistics are held against each other on the very same states."""

SAME: Final = 1e-6
"""Largest difference of such a score."""

NEAR: Final = 0.03
"""Largest mean difference of a curve's scores where each side collects: states in bfloat16 differ by rounding."""

Curves = dict[str, dict[str, float]]
"""Mean score over folds, by ``experiment/label`` and by column."""


@dataclass(slots=True)
class Outcome:
    """What one side took and found.

    Attributes
    ----------
    seconds
        By stage; the loading of the model is in neither.
    curves
        What was found.
    given
        What the plain script has to be given to do the same: texts, and for each target labels, groups and folds.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    curves: Curves = field(default_factory=dict)
    given: list[dict[str, Any]] = field(default_factory=list)


def measure(experiments: Sequence[Experiment] = EXPERIMENTS[1:2], rounds: int = 1) -> list[Figure]:
    """Measure both sides in rounds, and hold their curves against each other.

    Both sides fit every column with the same labels, groups, folds and penalties, and no controls, bootstrap or
    permutations.

    Parameters
    ----------
    experiments
        Built-in ones.

    Raises
    ------
    PeerError
        If the plain script is not installed, or the two sides do not find the same.
    """
    mine: list[Outcome] = []
    theirs: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as client:
        for index in range(rounds):
            runs = Path(name) / f"runs-{index}"
            mine.append(ours(client, experiments, runs))
            theirs.append(plain(mine[-1].given, Path(name)))
            check_curves(mine[-1].curves, theirs[-1].curves)
        check_statistics(mine[-1], runs)
    columns = next(iter(mine[0].curves.values()))
    sizes = {"n_stimuli": sum(len(given["texts"]) for given in mine[0].given), "n_columns": len(columns)}
    sizes["n_targets"] = len(mine[0].curves)
    return [*_figures("stratoscope", mine, sizes), *_figures(PLAIN, theirs, sizes)]


def ours(client: Client, experiments: Sequence[Experiment], runs: Path) -> Outcome:
    """Collect and fit as the product does: the targets of one kind of an experiment share folds and products."""
    outcome = Outcome()
    for experiment in experiments:
        table = load_experiment(experiment.name)
        with timed(outcome, "collect"):
            collect(table, runs / experiment.name, client, sites=SITES)
        with timed(outcome, "fit"):
            run = Run.open(runs / experiment.name)
            results = [
                sweep(run, labels, groups="group", probe=probe, controls=(), n_jobs=-1, say=lambda _: None)
                for probe, labels in by_probe(experiment).items()
            ]
            for result in results:
                outcome.curves |= curves_of(experiment.name, result)
        targets = [target for result in results for target in targets_of(result, list(table.ids))]
        outcome.given.append({"name": experiment.name, "texts": table.texts, "targets": targets})
    return outcome


@contextmanager
def timed(outcome: Outcome, stage: str) -> Iterator[None]:
    """Add what passes to a stage."""
    began = time.perf_counter()
    yield
    outcome.seconds[stage] += time.perf_counter() - began


def by_probe(experiment: Experiment) -> dict[str, list[str]]:
    """Return the labels of an experiment by their probe."""
    found: dict[str, list[str]] = {}
    for target in experiment.targets:
        found.setdefault(target.probe, []).append(target.label)
    return found


def curves_of(experiment: str, result: SweepResult) -> Curves:
    """Return the mean over folds of each target's columns."""
    outer = result.scores.filter(pl.col("level") == "outer", pl.col("metric").is_in(list(SCORE.values())))
    means = outer.group_by("target", "site", "layer").agg(pl.col("score").mean())
    found: Curves = {}
    for target, site, layer, score in means.iter_rows():
        found.setdefault(f"{experiment}/{target}", {})[f"{site}.{layer}"] = float(score)
    return found


def targets_of(result: SweepResult, ids: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each target's labels, groups and folds, in the order of the stimuli."""
    first = result.predictions.filter(pl.col("site") == SITES[0], pl.col("layer") == 0)
    for (label, probe), rows in first.group_by("target", "probe", maintain_order=True):
        assert rows["stimulus_id"].to_list() == ids, "a stimulus has no label"
        y, groups, folds = rows["label"].to_list(), rows["group"].to_list(), rows["fold"].to_list()
        yield {"label": label, "probe": probe, "y": y, "groups": groups, "fold_of": folds}


def plain(given: Sequence[Mapping[str, Any]], folder: Path) -> Outcome:
    """Run the plain script in its environment."""
    python = ENVIRONMENTS / "huggingface" / "bin" / "python"
    if not python.exists():
        raise PeerError(f"the environment {python.parents[1]} does not exist; make it with: make bench-setup")
    order, out = folder / "order.json", folder / "told.json"
    order.write_text(json.dumps(plain_order(given)))
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, "-m", f"peers.{SCRIPT}", order, out], check=True, env=environment)
    told = json.loads(out.read_text())
    return Outcome({stage: told[stage] for stage in STAGES}, told["curves"])


def plain_order(given: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all that the plain script is told."""
    settings = Settings()
    return {
        "model": str(model_folder()),
        "threads": len(os.sched_getaffinity(0)),
        "C": settings.C[0],
        "tolerance": SVM_TOLERANCE,
        "alphas": settings.alpha,
        "inner_folds": settings.inner_folds,
        "experiments": given,
    }


def check_curves(mine: Curves, theirs: Curves) -> None:
    """Refuse curves that are further apart than the rounding of bfloat16 explains.

    Raises
    ------
    PeerError
        Naming the target.
    """
    if mine.keys() != theirs.keys():
        raise PeerError(f"targets differ: {sorted(mine)} and {sorted(theirs)}")
    for target, curve in mine.items():
        if curve.keys() != theirs[target].keys():
            raise PeerError(f"{target}: the columns differ")
        apart = [abs(score - theirs[target][column]) for column, score in curve.items()]
        print(f"{target}: curves apart by {max(apart):.1e} at most, {np.mean(apart):.1e} on average", flush=True)
        if not np.mean(apart) <= NEAR:
            raise PeerError(f"{target}: the plain script's curve is {np.mean(apart):.1e} from ours on average")


def check_statistics(outcome: Outcome, runs: Path) -> None:
    """Hold the plain script's statistics, on the states that our side stored, against ours on a few columns.

    Raises
    ------
    PeerError
        If a score differs by more than the solvers' tolerance.
    """
    script = import_module(f"peers.{SCRIPT}")
    order = plain_order(outcome.given)
    for given in outcome.given:
        activations = Run.open(runs / given["name"]).activations()
        columns = {f"{site}.{layer}": np.asarray(activations[site, layer]) for site in SITES for layer in CHECKED}
        for target in given["targets"]:
            curve = outcome.curves[f"{given['name']}/{target['label']}"]
            for column, score in script.fit(columns, target, order).items():
                if not abs(score - curve[column]) <= SAME:
                    raise PeerError(f"{target['label']} at {column}: {score} by the plain script, {curve[column]} by ours")


def _figures(subject: str, outcomes: Sequence[Outcome], sizes: Mapping[str, float]) -> Iterator[Figure]:
    totals = tuple(sum(outcome.seconds.values()) for outcome in outcomes)
    limit = "" if subject == PLAIN else f"{PLAIN}/texts to curves"
    yield Figure("job", subject, "texts to curves", "s", totals, dict(sizes), limit)
    for stage in STAGES:
        values = tuple(outcome.seconds[stage] for outcome in outcomes)
        yield Figure("job", subject, stage, "s", values, dict(sizes), limit and f"{PLAIN}/{stage}")
