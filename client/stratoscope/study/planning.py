"""What a study will take, told before anything runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import joblib
import numpy as np
import polars as pl

from stratoscope.client import Client
from stratoscope.planning import CollectionPlan, plan_collection
from stratoscope.probes.cost import estimate_cost
from stratoscope.probes.estimators import ALPHAS, SHRINKAGES, Settings, as_grid
from stratoscope.probes.task import Task, make_task
from stratoscope.study.captures import distinct, make_captures
from stratoscope.study.config import Statistics, Study
from stratoscope.study.fits import Fit, by_experiment, list_fits
from stratoscope.study.halves import HALVES, halved_sites, halved_targets
from stratoscope.study.inside import is_asked
from stratoscope.study.stimuli import ID
from stratoscope_wire import ModelCard

REHEARSAL_TEXTS = 24
"""Texts that are read once to see how fast the server is."""


@dataclass(frozen=True)
class ExperimentPlan:
    """What one experiment takes: stimuli, groups, columns of its targets, and scikit-learn fits they amount to."""

    name: str
    n_stimuli: int
    n_groups: int
    n_analyses: int
    n_fits: int
    fit_seconds: float


@dataclass(frozen=True)
class StudyPlan:
    """What a study takes.

    Attributes
    ----------
    experiments
        One by one.
    collections
        One per capture; a text that several experiments share counts once.
    seconds_per_token
        Of the server, measured on a few of the study's texts; ``None`` if it was not rehearsed.
    """

    experiments: tuple[ExperimentPlan, ...]
    collections: tuple[CollectionPlan, ...]
    seconds_per_token: float | None

    @property
    def n_tokens(self) -> int:
        """Tokens to be read."""
        return sum(one.n_tokens for one in self.collections)

    @property
    def collect_seconds(self) -> float | None:
        """Expected time of collection."""
        return None if self.seconds_per_token is None else self.n_tokens * self.seconds_per_token

    @property
    def fit_seconds(self) -> float:
        """Expected time of all fits on this machine."""
        return sum(one.fit_seconds for one in self.experiments)


def plan_study(
    study: Study, stimuli: Mapping[str, pl.DataFrame], client: Client, *, rehearse: bool = True
) -> StudyPlan:
    """Count what a study takes, and forecast its time.

    Parameters
    ----------
    study, stimuli
    client
        Of the server. It counts tokens and bytes without running the model.
    rehearse
        Whether to time a few texts on the model; without it, the time of collection stays unknown.

    Raises
    ------
    StratoscopeError
        If the server would refuse a text or a capture.
    """
    card = client.model()
    captures = distinct(make_captures(study, stimuli, card))
    collections = tuple(plan_collection(capture.table, client, **capture.arguments) for capture in captures)
    by_name = by_experiment(list_fits(study, stimuli))
    return StudyPlan(
        tuple(_plan_experiment(study, name, stimuli[name], fits, card) for name, fits in by_name.items()),
        collections,
        _rehearse(captures[0].texts["text"].to_list(), client) if rehearse else None,
    )


def _rehearse(texts: list[str], client: Client) -> float:
    """Seconds per token of a few texts of typical length, the first request left out."""
    typical = sorted(texts, key=len)[:: max(1, len(texts) // REHEARSAL_TEXTS)][:REHEARSAL_TEXTS]
    client.activations(typical[:1])
    began = time.monotonic()
    read = client.activations(typical)
    last = read.positions["last"]
    return (time.monotonic() - began) / max(1, sum(int(position) + 1 for position in last))


def _plan_experiment(study: Study, name: str, frame: pl.DataFrame, fits: list[Fit], card: ModelCard) -> ExperimentPlan:
    experiment = study.experiment(name)
    costs = [cost for fit in fits for cost in _costs(study, fit, card)]
    return ExperimentPlan(
        name,
        frame.height,
        frame[experiment.group].n_unique(),
        len(fits),
        sum(n_fits for n_fits, _ in costs),
        sum(seconds for _, seconds in costs),
    )


def _costs(study: Study, fit: Fit, card: ModelCard) -> list[tuple[int, float]]:
    """(fits, seconds) of every sweep of an analysis, timed on noise of the model's shape."""
    s = study.statistics
    sites = fit.experiment.sites or study.reading.sites
    layers = fit.experiment.layers if fit.experiment.layers is not None else study.reading.layers
    n_columns = len(card.columns(list(sites), layers if isinstance(layers, str) else list(layers)))
    is_tested_itself = fit.target.kind == "values"
    types = s.shuffles if fit.target.types else 0
    found = [_cost(fit, s, fit.probe(s), n_columns, s.shuffles + types + s.permutations * is_tested_itself, card)]
    if not is_tested_itself and s.permutations:
        found.append(_cost(fit, s, s.test, n_columns, s.shuffles + s.permutations, card))
    if (fit.experiment.name, fit.target.title) in halved_targets(study):
        n_halved = len(card.columns([site for site in halved_sites(study) if site in sites], "all"))
        half = fit.with_rows(fit.rows[::2])
        found += [_cost(half, s, fit.probe(s), n_halved, 0, card)] * (len(HALVES) * s.splits)
    if study.heads is not None and is_asked(fit, study, study.heads):
        n_heads = card.n_heads * len(study.heads.depths)
        probe = s.values if is_tested_itself else s.test
        found.append(_cost(fit, s, probe, n_heads, s.shuffles + s.permutations, card, width=card.d_head))
    return found


def _cost(
    fit: Fit, s: Statistics, probe: str, n_columns: int, n_draws: int, card: ModelCard, *, width: int | None = None
) -> tuple[int, float]:
    task = _task(fit, s, probe, n_draws)
    noise = np.random.default_rng(0).standard_normal((fit.rows.height, width or card.d_model)).astype(np.float32)
    cost = estimate_cost(noise, task, n_columns, max(1, int(joblib.effective_n_jobs(-1))))
    return cost.n_fits, cost.seconds


def _task(fit: Fit, s: Statistics, probe: str, n_draws: int) -> Task:
    """Return the sweep's task, with as many label vectors; which they are does not change the cost."""
    settings = Settings(True, as_grid(s.C), as_grid(ALPHAS), as_grid(SHRINKAGES), 5)  # noqa: FBT003
    task = make_task(
        fit.rows[fit.target.label].to_numpy(), fit.groups.to_numpy(), probe=probe, cv=s.folds, settings=settings,
        ids=fit.rows[ID].to_list(), texts=None, target=fit.target.title, seed=s.seed,
    )  # fmt: skip
    return task.with_draws(n_shuffles=n_draws, n_permutations=0, types=None, seed=s.seed)
