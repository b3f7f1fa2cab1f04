"""The words of a report: numbers as readers see them, and what was done in plain sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

ORIGIN = "a reconstruction after Bogdan 2025; not its stimuli or its numbers"

_LEVELS = {
    "group": "whole groups swapped their label, since every group has one",
    "within": "stimuli swapped labels within their group, since every group holds the same mix",
    "mixed": "labels moved in whole blocks of groups, since they vary both between and within groups",
}


def number(value: float | None, digits: int = 3) -> str:
    """Write a score: a dash where there is none, "undefined" where it has no value."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "undefined"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def interval(low: float | None, high: float | None) -> str:
    """Write an interval, "[0.812, 0.874]"."""
    return f"[{number(low)}, {number(high)}]"


def onset(row: Mapping[str, Any]) -> str:
    """Write the first decodable layer with its interval, "4 [3, 6]"; a dash where there is none."""
    if row["onset_layer"] is None:
        return "–"
    return f"{row['onset_layer']} [{row['onset_first']}, {row['onset_last']}]"


def methods(probe: Mapping[str, Any]) -> str:
    """Say in plain words how one target was probed, from the provenance of its sweep."""
    settings = probe["settings"]
    scaled = "standardised" if settings["scale"] else "centred"
    sentences = (
        f"“{probe['target']}”: {_estimator(probe)}, fitted for each column of activations to {probe['n_stimuli']} "
        f"stimuli in {probe['n_groups']} groups, with features {scaled} on the training rows alone.",
        f"Scores are means over {probe['n_folds']} held-out folds. A group never crosses folds, and the folds "
        f"(SHA-256 {probe['folds_sha256'][:12]}…) are the same for every site and layer.",
        _shuffles(probe),
        _permutations(probe),
        "The baseline “words alone” is the same probe on word counts of the texts, on the same folds."
        if "text" in probe["controls"]
        else "No text-only baseline was fitted.",
    )
    return " ".join(filter(None, sentences))


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401  any JSON
    """Yield (dotted path, text) for every leaf of nested JSON; lists of plain values stay on one line."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, (Mapping, list, tuple)) for inner in value):
        for index, inner in enumerate(value):
            yield from flatten(inner, f"{path}[{index}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


_NAMES = {
    "svm": "a linear support vector machine (hinge loss, unpenalised intercept{})",
    "ridge": "ridge regression{}",
    "ridge_classifier": "ridge regression on classes coded as −1 and 1{}",
    "lda": "linear discriminant analysis with a shrunk covariance{}",
    "logistic": "logistic regression with an L2 penalty{}",
    "linear_svc": "a linear support vector machine by LIBLINEAR (squared hinge loss, penalised intercept, C = 1{})",
}
_CRITERIA = {"mse": "mean squared error", "balanced_accuracy": "balanced accuracy"}


def _estimator(probe: Mapping[str, Any]) -> str:
    known = _NAMES.get(probe["probe"])
    named = f"the estimator {probe['estimator'] or probe['probe']}" if known is None else known.format(_penalty(probe))
    return named + (f", {' against '.join(f'“{name}”' for name in probe['classes'])}" if probe["classes"] else "")


def _penalty(probe: Mapping[str, Any]) -> str:
    hyper, settings = probe["hyper"], probe["settings"]
    if hyper is None:
        return ""
    opened, closed = (", ", "") if probe["probe"] == "svm" else (" (", ")")
    grid = settings[hyper]
    if len(grid) == 1:
        return f"{opened}{hyper} = {grid[0]:g}{closed}"
    return (
        f"{opened}{hyper} chosen from {len(grid)} values, {grid[0]:g} to {grid[-1]:g}, by "
        f"{_CRITERIA[probe['criterion']]} over {settings['inner_folds']} grouped inner folds of the training rows"
        f"{closed}"
    )


def _shuffles(probe: Mapping[str, Any]) -> str:
    if not probe["n_shuffles"]:
        return "Labels were not shuffled as a control."
    return (
        f"The shuffled band shows the same analysis on {probe['n_shuffles']} shuffles of the labels, in which "
        f"{_LEVELS[probe['label_level']]} (seed {probe['seed']}); with so few its limits are close to their range."
        if probe["n_shuffles"] < 40
        else f"The shuffled band holds the middle 95% of {probe['n_shuffles']} shuffles of the labels, in which "
        f"{_LEVELS[probe['label_level']]} (seed {probe['seed']})."
    )


def _permutations(probe: Mapping[str, Any]) -> str:
    if not probe["n_permutations"]:
        return ""
    return (
        f"Corrected p-values compare a score with the best of all layers and sites under {probe['n_permutations']} "
        "permutations of the labels, moved in the same way between groups of one fold and size."
    )
