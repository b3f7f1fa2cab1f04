"""The registry of probes: each fits all label vectors of one target in one fold, from shared features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.svm import LinearSVC

from stratoscope.probes.classifiers import Decisions, Positions, fit_lda, fit_logistic, fit_svms
from stratoscope.probes.errors import DesignError
from stratoscope.probes.features import FoldFeatures
from stratoscope.probes.folds import Split
from stratoscope.probes.labels import Kind, Labels
from stratoscope.probes.ridge import code_classes, held_out_errors, predict_ridge

Floats = NDArray[np.float64]

ALPHAS: tuple[float, ...] = tuple(float(alpha) for alpha in 10.0 ** np.arange(0, 7.5, 0.5))
"""Default grid of ridge penalties, 1 to 1e7 in half decades. A standardised Gram has eigenvalues of mean d_model."""

SHRINKAGES: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 0.9)
"""Default grid of the shrinkage of discriminant analysis."""

Hyper = Literal["C", "alpha", "shrinkage"]


@dataclass(frozen=True)
class Settings:
    """What probes are told beside the data. Of a grid with one value it is used as it is.

    scale : divide features by their standard deviation over the training rows (they are centred in any case)
    C : penalties of hinge and logistic loss, ascending
    alpha : ridge penalties, ascending
    shrinkage : of discriminant analysis, ascending, between 0 (excluded) and 1
    inner_folds : number of grouped folds of the training rows that choose from a grid
    """

    scale: bool = True
    C: tuple[float, ...] = (1.0,)
    alpha: tuple[float, ...] = ALPHAS
    shrinkage: tuple[float, ...] = SHRINKAGES
    inner_folds: int = 5

    def __post_init__(self) -> None:
        for name, grid in (("C", self.C), ("alpha", self.alpha), ("shrinkage", self.shrinkage)):
            for number in grid:
                if not (np.isfinite(number) and number > 0):
                    raise DesignError(f"{name}={number}: a penalty must be finite and above zero")
            if not grid or list(grid) != sorted(set(grid)):
                raise DesignError(f"{name}: give at least one value, each once, in ascending order")
        if self.shrinkage[-1] > 1:
            raise DesignError(f"shrinkage={self.shrinkage[-1]}: a shrinkage lies between 0 and 1")
        if self.inner_folds < 2:
            raise DesignError(f"inner_folds={self.inner_folds}: at least 2 are needed to choose from a grid")

    def grid(self, hyper: Hyper | None) -> tuple[float, ...]:
        """Values of a hyper-parameter; empty for a probe without one."""
        return () if hyper is None else getattr(self, hyper)


def as_grid(values: float | Sequence[float]) -> tuple[float, ...]:
    """Return one value or several as a grid."""
    return (float(values),) if isinstance(values, (int, float)) else tuple(float(value) for value in values)


class FoldFit(NamedTuple):
    """What one fold yields for every label vector.

    decision : float64 array of shape (n_test, n_vectors, n_outputs); signed distance, class scores, or predicted value
    predicted : float64 array of shape (n_test, n_vectors); class numbers or values
    chosen : float64 array of shape (n_vectors,); the hyper-parameter that was used, NaN if there is none
    inner : float64 array of shape (n_vectors,); what the inner folds gave at `chosen`, NaN if nothing was chosen
    """

    decision: Floats
    predicted: Floats
    chosen: Floats
    inner: Floats


Fit = Callable[[FoldFeatures, Labels, Split, Settings], FoldFit]


@dataclass(frozen=True)
class Probe:
    """A kind of probe. Register your own by passing one to `sweep`.

    name : for tables and files
    kind : of its labels
    fit : fits all label vectors of one fold
    hyper : name of its hyper-parameter, or None
    criterion : what the inner folds compare: "mse" (lower is better) or "balanced_accuracy"
    identity : what tells this fit from another of the same name; checkpoints of one are not taken for the other's
    affine : whether decisions are affine in the features, which `generalize` needs: always, for two classes, or no
    """

    name: str
    kind: Kind
    fit: Fit
    hyper: Hyper | None = None
    criterion: str = "mse"
    identity: str = ""
    affine: Literal["always", "binary", "no"] = "always"


def fit_ridge(fold: FoldFeatures, labels: Labels, split: Split, settings: Settings) -> FoldFit:
    """Ridge regression; see `stratoscope.probes.ridge`.

    Alpha minimises, for each label vector anew, the mean over the grouped inner folds of the mean squared error, as
    ``make_pipeline(StandardScaler(), GridSearchCV(Ridge(), cv=..., scoring="neg_mean_squared_error"))`` does.
    """
    values, chosen, inner = _ridge(fold, labels.Y[split.train][:, :, None], split, settings)
    return FoldFit(values, values[:, :, 0], chosen, inner)


def fit_ridge_classifier(fold: FoldFeatures, labels: Labels, split: Split, settings: Settings) -> FoldFit:
    """Ridge regression on classes coded -1 and 1, one against the rest (``RidgeClassifier``); see `fit_ridge`."""
    Y = code_classes(labels.Y[split.train], labels.n_outputs)
    decision, chosen, inner = _ridge(fold, Y, split, settings)
    return FoldFit(decision, predicted_classes(decision), chosen, inner)


def predicted_classes(decision: Floats) -> Floats:
    """Class numbers that decisions of shape (..., n_outputs) stand for."""
    if decision.shape[-1] == 1:
        return np.asarray(decision[..., 0] >= 0, dtype=np.float64)
    return np.asarray(decision.argmax(axis=-1), dtype=np.float64)


def _ridge(fold: FoldFeatures, Y: Floats, split: Split, settings: Settings) -> tuple[Floats, Floats, Floats]:
    """Fit labels (n_train, n_vectors, n_outputs); return decisions of the same shape, chosen alphas, inner errors."""
    n_train, n_vectors, n_outputs = Y.shape
    flat, alphas = Y.reshape(n_train, -1), np.asarray(settings.alpha)
    chosen, inner = np.full(n_vectors, alphas[0]), np.full(n_vectors, np.nan)
    if len(alphas) > 1:
        errors = held_out_errors(fold.axes, flat, split.inner, alphas).reshape(len(alphas), n_vectors, -1).mean(axis=2)
        best = errors.argmin(axis=0)
        chosen, inner = alphas[best], errors[best, np.arange(n_vectors)]
    decision = predict_ridge(fold.axes, flat, np.repeat(chosen, n_outputs))
    return decision.reshape(-1, n_vectors, n_outputs), chosen, inner


OneVector = Callable[[FoldFeatures, Floats, Positions, Positions | None, Sequence[float]], list[Decisions]]


def _fit_one_by_one(
    fit: OneVector, hyper: Hyper, fold: FoldFeatures, labels: Labels, split: Split, settings: Settings
) -> FoldFit:
    """Fit label vectors one by one, each choosing its hyper-parameter by balanced accuracy, the lowest on a tie."""
    fits, chosen, inner = [], [], []
    everything = np.arange(len(split.train))
    for codes in labels.Y[split.train].T:
        value, score = _choose(fit, fold, codes, split, settings.grid(hyper))
        fits.append(fit(fold, codes, everything, None, [value])[0])
        chosen.append(value)
        inner.append(score)
    decision = np.stack([one.values for one in fits], axis=1)
    predicted = np.stack([one.predicted for one in fits], axis=1).astype(np.float64)
    return FoldFit(decision, predicted, np.array(chosen), np.array(inner))


def _choose(
    fit: OneVector, fold: FoldFeatures, codes: Floats, split: Split, grid: tuple[float, ...]
) -> tuple[float, float]:
    if len(grid) == 1:
        return grid[0], np.nan
    scores = []
    for train, test in split.inner:
        # A control's labels may leave an inner fold with one class: it then has nothing to say.
        if len(np.unique(codes[train])) > 1:
            found = fit(fold, codes, train, test, grid)
            scores.append([mean_recall(codes[test], one.predicted) for one in found])
    if not scores:
        return grid[0], np.nan
    means = np.mean(scores, axis=0)
    best = int(means.argmax())
    return grid[best], float(means[best])


def mean_recall(codes: Floats, predicted: NDArray[Any]) -> float:
    """Balanced accuracy over the classes that occur in `codes`, as scikit-learn's ``balanced_accuracy_score``."""
    return float(np.mean([np.mean(predicted[codes == label] == label) for label in np.unique(codes)]))


def plain_probe(
    estimator: Any,
    *,
    name: str | None = None,
    affine: Literal["always", "binary", "no"] = "no",
) -> Probe:
    """Make a probe of any scikit-learn classifier or regressor: the slow path, one fit per label vector.

    It is given the rows centred (and scaled) on the training rows; a pipeline may transform them further. Nothing is
    shared but the rows, and it chooses its own hyper-parameters, if any: mind that its inner folds are not grouped.

    Raises
    ------
    DesignError
        If it is neither a classifier nor a regressor.
    """
    if not (is_classifier(estimator) or is_regressor(estimator)):
        raise DesignError(f"probe {type(estimator).__name__} is neither a classifier nor a regressor of scikit-learn")
    kind: Kind = "classes" if is_classifier(estimator) else "values"
    shown = name or type(estimator).__name__.lower()
    return Probe(shown, kind, partial(_fit_plain, estimator), identity=repr(estimator), affine=affine)


def _fit_plain(estimator: Any, fold: FoldFeatures, labels: Labels, split: Split, settings: Settings) -> FoldFit:
    del settings
    train, test = fold.arrays
    decisions, predictions = [], []
    for y in labels.Y[split.train].T:
        model = clone(estimator).fit(train, y)
        predicted = np.asarray(model.predict(test), dtype=np.float64)
        predictions.append(predicted)
        decisions.append(_plain_decision(model, test, predicted, labels))
    nothing = np.full(labels.Y.shape[1], np.nan)
    return FoldFit(np.stack(decisions, axis=1), np.stack(predictions, axis=1), nothing, nothing)


def _plain_decision(model: Any, test: Floats, predicted: Floats, labels: Labels) -> Floats:
    if hasattr(model, "decision_function"):
        return np.asarray(model.decision_function(test), dtype=np.float64).reshape(len(test), -1)
    if labels.kind == "values":
        return predicted[:, None]
    if hasattr(model, "predict_proba"):
        shares = np.asarray(model.predict_proba(test), dtype=np.float64)
        return shares if labels.n_outputs > 1 else shares[:, 1:] - 0.5
    return code_classes(predicted[:, None], labels.n_outputs)[:, 0]


PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe("svm", "classes", partial(_fit_one_by_one, fit_svms, "C"), "C", "balanced_accuracy", "exact", "binary"),
        Probe("ridge", "values", fit_ridge, "alpha"),
        Probe("ridge_classifier", "classes", fit_ridge_classifier, "alpha"),
        Probe("lda", "classes", partial(_fit_one_by_one, fit_lda, "shrinkage"), "shrinkage", "balanced_accuracy"),
        Probe("logistic", "classes", partial(_fit_one_by_one, fit_logistic, "C"), "C", "balanced_accuracy"),
        plain_probe(LinearSVC(random_state=0, max_iter=10_000), name="linear_svc", affine="always"),
    )
}


def find_probe(probe: Any) -> Probe:
    """Return a registered probe by name, a probe as it is, or a scikit-learn estimator as a probe.

    Raises
    ------
    DesignError
        If it is none of these.
    """
    if isinstance(probe, Probe):
        return probe
    if isinstance(probe, str):
        if probe not in PROBES:
            raise DesignError(f"probe {probe!r} is unknown; choose one of {', '.join(PROBES)}")
        return PROBES[probe]
    return plain_probe(probe)
