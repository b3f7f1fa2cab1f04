"""The whole job, from texts to layer curves, against the script that a researcher would write."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from stratoscope import Client, Run
from stratoscope.collection import collect
from stratoscope.experiments import EXPERIMENTS, Experiment, load_experiment
from stratoscope.probes import SweepResult, sweep
from stratoscope.probes.baselines import permute_labels
from throughput.agreement import check_curves, check_statistics
from throughput.figure import Figure
from throughput.ours import SITES, served
from throughput.outcome import STAGES, Curves, Outcome
from throughput.plain import plain

PLAIN: Final = "plain script"
SCORE: Final = {"svm": "balanced_accuracy", "ridge": "r2"}


def measure(experiments: Sequence[Experiment] = EXPERIMENTS[1:2], rounds: int = 1, n_shuffles: int = 0) -> list[Figure]:
    """Measure both sides in rounds, and hold their curves against each other.

    Both sides fit every column with the same labels, groups, folds and penalties, and the same shuffled labels as a
    control; there is no text baseline, bootstrap or permutation test on either.

    Parameters
    ----------
    experiments
        Built-in ones.
    n_shuffles
        Shuffled label vectors that are fitted beside the labels as given; `stratoscope probe` fits 5.

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
            mine.append(ours(client, experiments, runs, n_shuffles))
            theirs.append(plain(mine[-1].given, Path(name)))
            check_curves(mine[-1].curves, theirs[-1].curves)
        check_statistics(mine[-1], runs)
    columns = next(iter(mine[0].curves.values()))
    sizes = {"n_stimuli": sum(len(given["texts"]) for given in mine[0].given), "n_columns": len(columns)}
    sizes |= {"n_targets": len(mine[0].curves), "n_shuffles": n_shuffles}
    kind = f", {n_shuffles} controls" if n_shuffles else ""
    return [*_figures("stratoscope", kind, mine, sizes), *_figures(PLAIN, kind, theirs, sizes)]


def ours(client: Client, experiments: Sequence[Experiment], runs: Path, n_shuffles: int) -> Outcome:
    """Collect and fit as the product does: the targets of one kind of an experiment share folds and products."""
    outcome = Outcome()
    for experiment in experiments:
        table = load_experiment(experiment.name)
        with timed(outcome, "collect"):
            collect(table, runs / experiment.name, client, sites=SITES)
        with timed(outcome, "fit"):
            run = Run.open(runs / experiment.name)
            results = [fit(run, labels, probe, n_shuffles) for probe, labels in by_probe(experiment).items()]
            for result in results:
                outcome.curves |= curves_of(experiment.name, result)
        targets = [target for result in results for target in targets_of(result, list(table.ids), n_shuffles)]
        outcome.given.append({"name": experiment.name, "texts": table.texts, "targets": targets})
    return outcome


def fit(run: Run, labels: list[str], probe: str, n_shuffles: int) -> SweepResult:
    """Fit some targets at every column."""
    controls = ("shuffled",) if n_shuffles else ()
    return sweep(
        run,
        labels,
        groups="group",
        probe=probe,
        controls=controls,
        n_shuffles=n_shuffles,
        n_jobs=-1,
        say=lambda _: None,
    )


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
    vectors = outer.group_by("target", "site", "layer", "control", "repeat").agg(pl.col("score").mean())
    found: Curves = {}
    # "none", the labels as given, sorts before "shuffled".
    for target, site, layer, _, _, score in vectors.sort("control", "repeat").iter_rows():
        found.setdefault(f"{experiment}/{target}", {}).setdefault(f"{site}.{layer}", []).append(float(score))
    return found


def targets_of(result: SweepResult, ids: list[str], n_shuffles: int) -> Iterator[dict[str, Any]]:
    """Yield each target's label vectors, groups and folds, in the order of the stimuli."""
    first = result.predictions.filter(pl.col("site") == SITES[0], pl.col("layer") == 0)
    for (label, probe), rows in first.group_by("target", "probe", maintain_order=True):
        assert rows["stimulus_id"].to_list() == ids, "a stimulus has no label"
        y, groups, folds = rows["label"].to_numpy(), rows["group"].to_numpy(), rows["fold"].to_numpy()
        vectors = [y.tolist()]
        if n_shuffles:
            group_of = np.unique(groups, return_inverse=True)[1]
            vectors += permute_labels(y, group_of, folds, n_draws=n_shuffles, seed=0).T.tolist()
        facts = {"groups": groups.tolist(), "fold_of": folds.tolist(), "vectors": vectors}
        yield {"label": label, "probe": probe, **facts}


def _figures(subject: str, kind: str, outcomes: Sequence[Outcome], sizes: Mapping[str, float]) -> Iterator[Figure]:
    rival = "" if subject == PLAIN else f"{PLAIN}{kind}"
    totals = tuple(sum(outcome.seconds.values()) for outcome in outcomes)
    seconds = {"texts to curves": totals}
    seconds |= {stage: tuple(outcome.seconds[stage] for outcome in outcomes) for stage in STAGES}
    for measured, values in seconds.items():
        yield Figure("job", f"{subject}{kind}", measured, "s", values, dict(sizes), rival and f"{rival}/{measured}")
