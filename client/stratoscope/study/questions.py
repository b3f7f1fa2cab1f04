"""The questions a study asks beyond single curves, each answered as one tidy table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.study.asked import Coordination, RiseFallRise
from stratoscope.study.config import Statistics, Study
from stratoscope.study.coordination import take_turns, trade_off
from stratoscope.study.fits import Fit, load_fit
from stratoscope.study.halves import half_curves, load_halves
from stratoscope.study.order import order_of_peaks
from stratoscope.study.resampling import Curve, mean_curve, resampled_curve
from stratoscope.study.rise_fall import MIN_LAYERS, Contrast, Window, contrast, find_windows, rise_fall_rise
from stratoscope.study.workspace import Workspace

ALPHA = 0.05
CHANCE = {"roc_auc": 0.5, "pearson": 0.0}

RISE_FALL_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("experiment", "target", "site", "peak1", "trough", "peak2"), pl.String),
        **dict.fromkeys(
            ("fall", "fall_low", "fall_high", "fall_p", "rise", "rise_low", "rise_high", "rise_p"), pl.Float64
        ),
        "verdict": pl.String,
    }
)
TURNS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("experiment", "target", "site"), pl.String),
        **dict.fromkeys(
            ("reliability", "reliability_p", "lag1", "lag1_null_low", "lag1_null_high", "lag1_p"), pl.Float64
        ),
        "verdict": pl.String,
    }
)
TRADE_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("site", "target_a", "target_b"), pl.String),
        **dict.fromkeys(("correlation", "null_low", "null_high", "p"), pl.Float64),
        "verdict": pl.String,
    }
)
ORDER_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("earlier", "later", "site"), pl.String),
        **dict.fromkeys(("difference", "low", "high"), pl.Float64),
        "verdict": pl.String,
    }
)
FADES_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("experiment", "site", "peak", "deep"), pl.String),
        **dict.fromkeys(("decline", "low", "high", "p"), pl.Float64),
    }
)

ALL_TARGETS = "all targets"


def experiment_curve(fits: Sequence[Fit], workspace: Workspace, site: str, statistics: Statistics) -> Curve:
    """Return the mean curve of an experiment's `averaged` targets, under common resamples."""
    curves = [
        resampled_curve(result, site, fit.metric, n_resamples=statistics.resamples, seed=statistics.seed)
        for fit in averaged(fits)
        if (result := load_fit(fit, "main", workspace)) is not None
    ]
    return mean_curve(curves)


def averaged(fits: Sequence[Fit]) -> list[Fit]:
    """Return the fits whose curves may be averaged: no controls, and of one kind, classes where there are any."""
    real = [fit for fit in fits if not fit.target.control]
    classes = [fit for fit in real if fit.target.kind == "classes"]
    return classes or real


def order_table(study: Study, fits: Mapping[str, Sequence[Fit]], workspace: Workspace) -> pl.DataFrame:
    """Compare the peaks of the experiments that some claim puts in order."""
    rows = []
    for claim in study.claims:
        if claim.rule != "order":
            continue
        curves = {
            name: experiment_curve(fits[name], workspace, claim.site, study.statistics) for name in claim.experiments
        }
        for earlier, later in pairwise(claim.experiments):
            found = order_of_peaks(curves[earlier], curves[later])
            rows.append({"earlier": earlier, "later": later, "site": claim.site, **found._asdict()})
    return pl.DataFrame(rows, ORDER_SCHEMA).unique(maintain_order=True)


def fades_table(study: Study, fits: Mapping[str, Sequence[Fit]], workspace: Workspace) -> pl.DataFrame:
    """Measure how far the deepest tenth of the layers lies below the peak that the other half of the groups has set."""
    rows = []
    for claim in study.claims:
        names = claim.experiments if claim.rule == "fades" else ()
        rows += [{"experiment": n, "site": claim.site, **_fades(study, fits[n], workspace, claim.site)} for n in names]
    return pl.DataFrame(rows, FADES_SCHEMA).unique(maintain_order=True)


def rise_fall_table(study: Study, fits: Mapping[str, Sequence[Fit]], workspace: Workspace) -> pl.DataFrame:
    """Look for rise, fall and rise in every target asked about, at every site of the halves."""
    asked = study.rise_fall_rise
    rows = []
    for experiment, target in study.chosen(asked):
        assert asked is not None
        for fit in (one for one in fits[experiment.name] if one.target == target):
            for site in study.sites_of(asked):
                found = _rise_fall(fit, workspace, site, asked, study.statistics)
                if found is not None:
                    rows.append({"experiment": experiment.name, "target": target.title, "site": site, **found})
    return pl.DataFrame(rows, RISE_FALL_SCHEMA)


def turns_table(study: Study, fits: Mapping[str, Sequence[Fit]], workspace: Workspace) -> pl.DataFrame:
    """Test for turns between neighbouring layers: all targets together, then one by one."""
    asked = study.coordination
    rows = []
    for site in study.sites_of(asked):
        assert asked is not None
        named = _halves(study, asked, fits, workspace, site)
        if not named:
            continue
        every = {(ALL_TARGETS, ALL_TARGETS): np.stack(list(named.values())), **{k: v[None] for k, v in named.items()}}
        for (experiment, target), curves in every.items():
            found = take_turns(curves, span=asked.span, n_draws=asked.draws, seed=study.statistics.seed)
            is_reliable, in_turn = found.reliability_p <= ALPHA, found.lag1_p <= ALPHA
            verdict = "cannot be told" if not is_reliable else "holds" if in_turn else "does not hold"
            values = dict(zip(list(TURNS_SCHEMA)[3:9], found, strict=True))
            rows.append({"experiment": experiment, "target": target, "site": site, **values, "verdict": verdict})
    return pl.DataFrame(rows, TURNS_SCHEMA)


def trade_table(study: Study, fits: Mapping[str, Sequence[Fit]], workspace: Workspace) -> pl.DataFrame:
    """Test every two targets of the coordination question for a trade-off, at 0.05 over all pairs (Bonferroni)."""
    asked = study.coordination
    rows = []
    for site in study.sites_of(asked):
        assert asked is not None
        named = _halves(study, asked, fits, workspace, site)
        pairs = list(combinations(named.items(), 2))
        for (a, left), (b, right) in pairs:
            found = trade_off(left, right, span=asked.span, n_draws=asked.draws, seed=study.statistics.seed)
            verdict = "found" if found.p * len(pairs) <= ALPHA else "not found"
            rows.append(
                {"site": site, "target_a": "/".join(a), "target_b": "/".join(b), **found._asdict(), "verdict": verdict}
            )
    return pl.DataFrame(rows, TRADE_SCHEMA)


def _halves(
    study: Study, asked: Coordination, fits: Mapping[str, Sequence[Fit]], workspace: Workspace, site: str
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Curves of every target's halves, (n_splits, 2, n_layers); those that the halves lack are not there."""
    named = {}
    for experiment, target in study.chosen(asked):
        for fit in (one for one in fits[experiment.name] if one.target == target):
            layers, curves = half_curves(fit, workspace, site, study.statistics.splits)
            # Layers that were not read between two others leave nobody to take turns with.
            if len(layers) > asked.span and (np.diff(layers) == 1).all():
                named[experiment.name, fit.name] = curves
    return named


def _half_curve(fit: Fit, workspace: Workspace, half: str, site: str, statistics: Statistics) -> Curve:
    result = load_halves(fit, workspace, 0)[half]
    return resampled_curve(result, site, fit.metric, n_resamples=statistics.resamples, seed=statistics.seed)


def _fades(study: Study, fits: Sequence[Fit], workspace: Workspace, site: str) -> dict[str, Any]:
    a, b = (
        mean_curve([_half_curve(fit, workspace, half, site, study.statistics) for fit in averaged(fits)])
        for half in ("a", "b")
    )
    place = int(a.scores.argmax())
    peak = int(a.layers[max(place - 1, 0)]), int(a.layers[min(place + 1, len(a.layers) - 1)])
    deep = int(a.layers[-max(2, round(len(a.layers) / 10))]), int(a.layers[-1])
    found = contrast(b, peak, deep)
    return {
        "peak": _shown(peak), "deep": _shown(deep), "decline": found.value, "low": found.low, "high": found.high,
        "p": found.p,
    }  # fmt: skip


def _rise_fall(
    fit: Fit, workspace: Workspace, site: str, asked: RiseFallRise, statistics: Statistics
) -> dict[str, Any] | None:
    finding, chance = _half_curve(fit, workspace, "a", site, statistics), CHANCE[fit.metric]
    if len(finding.layers) < MIN_LAYERS:
        return _no_dip("too short")
    if asked.windows is None:
        windows = find_windows(finding.scores, finding.layers, chance=chance)
        if windows is None:
            return _no_dip("not found")
        found = rise_fall_rise(_half_curve(fit, workspace, "b", site, statistics), windows, chance=chance)
    else:
        result = load_fit(fit, "main", workspace)
        assert result is not None
        whole = resampled_curve(result, site, fit.metric, n_resamples=statistics.resamples, seed=statistics.seed)
        found = rise_fall_rise(whole, asked.windows, chance=chance)
    peak1, trough, peak2 = (_shown(window) for window in found.windows)
    return {
        "peak1": peak1, "trough": trough, "peak2": peak2,
        **_contrast("fall", found.fall), **_contrast("rise", found.rise),
        "verdict": "found" if found.p <= ALPHA else "not found",
    }  # fmt: skip


def _no_dip(verdict: str) -> dict[str, Any]:
    return dict.fromkeys(list(RISE_FALL_SCHEMA)[3:-1]) | {"verdict": verdict}


def _contrast(name: str, found: Contrast) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p}


def _shown(window: Window) -> str:
    return f"{window[0]}-{window[1]}"
