"""Halves: targets fitted twice on disjoint groups, so that what is found on one half can be tested on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.probes import SweepResult
from stratoscope.probes.sources import ChosenColumns
from stratoscope.study.config import Study
from stratoscope.study.fits import Columns, Fit, Rows, Tick, fit_once, load_fit, settings_of
from stratoscope.study.workspace import Workspace

HALVES: Final = ("a", "b")


def halved_targets(study: Study) -> set[tuple[str, str]]:
    """Return (experiment, target) of everything that some question needs halves of."""
    fading = [word for claim in study.claims if claim.rule == "fades" for word in claim.experiments]
    words = [*fading, *(() if study.rise_fall_rise is None else study.rise_fall_rise.of)]
    words += () if study.coordination is None else study.coordination.of
    return {(experiment.name, target.title) for word in words for experiment, target in study.expand(word)}


def halved_sites(study: Study) -> tuple[str, ...]:
    """Return the sites that some question needs halves of."""
    fading = [claim.site for claim in study.claims if claim.rule == "fades"]
    sites = [*fading, *study.sites_of(study.coordination), *study.sites_of(study.rise_fall_rise)]
    return tuple(dict.fromkeys(sites))


def fit_halves(fit: Fit, columns: Columns, study: Study, workspace: Workspace, fingerprint: str, tick: Tick) -> None:
    """Fit a target on both halves of its groups, for every division."""
    statistics = study.statistics
    for split in range(statistics.splits):
        for half, rows in split_groups(fit, split).items():
            kept = np.flatnonzero(fit.rows["stimulus_id"].is_in(rows["stimulus_id"].to_list()).to_numpy())
            fit_once(
                fit.with_rows(rows), ChosenColumns(columns, kept, halved_sites(study)),
                fit.folder(workspace) / _name(split, half), fingerprint, tick,
                **settings_of(fit.probe(statistics), statistics), controls=(),
            )  # fmt: skip


def split_groups(fit: Fit, split: int) -> dict[str, Rows]:
    """Divide the stimuli of a fit into halves by their groups.

    All targets of an experiment that have the same groups are divided alike, so that their curves can be compared.
    """
    names = fit.groups.unique().sort().to_list()
    order = np.random.default_rng([split, len(names)]).permutation(len(names))
    side = dict(zip((names[number] for number in order), np.arange(len(names)) % 2, strict=True))
    of_row = np.array([side[name] for name in fit.groups])
    return {half: fit.rows.filter(pl.Series(of_row == number)) for number, half in enumerate(HALVES)}


def load_halves(fit: Fit, workspace: Workspace, split: int) -> Mapping[str, SweepResult]:
    """Read both halves of one division."""
    found = {half: load_fit(fit, _name(split, half), workspace) for half in HALVES}
    return {half: result for half, result in found.items() if result is not None}


def half_curves(
    fit: Fit, workspace: Workspace, site: str, n_splits: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the curves of all halves at one site: means over folds of `Fit.metric`.

    Returns
    -------
    layers : int array of shape (n_layers,), ascending
    curves : float64 array of shape (n_splits, 2, n_layers)
    """
    curves = []
    for split in range(n_splits):
        halves = load_halves(fit, workspace, split)
        curves.append([_curve(halves[half], site, fit.metric) for half in HALVES])
    layers = curves[0][0]["layer"].to_numpy().astype(np.intp)
    return layers, np.array([[curve["score"].to_numpy() for curve in pair] for pair in curves])


def _curve(result: SweepResult, site: str, metric: str) -> pl.DataFrame:
    rows = result.scores.filter(site=site, metric=metric, level="outer", control="none")
    return rows.group_by("layer").agg(pl.col("score").mean()).sort("layer")


def _name(split: int, half: str) -> str:
    return f"halves/{split}{half}"
