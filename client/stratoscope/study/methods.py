"""The methods of a study in words, from its configuration alone."""

from __future__ import annotations

from stratoscope.report.prose import ORIGIN
from stratoscope.study.config import Experiment, Statistics, Study
from stratoscope.study.rise_fall import window_reach
from stratoscope.study.texts import AtDistance, Lists
from stratoscope_wire import ModelCard

NAMES = {
    "svm": "a linear support vector machine (C = {C:g})",
    "ridge": "ridge regression (penalty chosen by inner grouped folds)",
    "ridge_classifier": "ridge regression on coded classes (penalty chosen by inner grouped folds)",
    "lda": "linear discriminant analysis with a shrunk covariance",
    "logistic": "logistic regression (C = {C:g})",
    "linear_svc": "LIBLINEAR's support vector machine",
}


def methods(study: Study, card: ModelCard) -> list[str]:
    """Write the methods, one paragraph an entry."""
    return [
        _model(study, card),
        _texts(study),
        _probes(study),
        _tests(study),
        *_questions(study, card),
        _switches(study),
    ]


def _model(study: Study, card: ModelCard) -> str:
    sites = ", ".join(study.reading.sites)
    special = "with" if study.reading.add_special_tokens else "without"
    return (
        f"{card.model} (revision {card.revision}, {card.n_layers} layers, width {card.d_model}, computed in "
        f"{card.dtype} by "
        f"the engine {card.engine}) read every text once, {special} its special tokens and without a chat "
        "template. Hidden "
        f"states were taken at the sites {sites}, layers {study.reading.layers}, at the selector "
        f"“{study.reading.read}” "
        "(the last token of the text unless an experiment says otherwise). Layers count decoder blocks from 0; "
        "“resid_post” is the residual stream after a block, and before the final norm."
    )


def _texts(study: Study) -> str:
    made = "; ".join(f"{e.title}: {_design(e)}" for e in study.experiments)
    return (
        "Texts were made from tables by seeded designs that counterbalance what a shortcut could use. " + made + ". "
        "Stimuli are this project's own."
    )


def _design(experiment: Experiment) -> str:
    match experiment.texts:
        case AtDistance(of=of, distances=distances):
            return f"texts of “{of}” followed by about {', '.join(map(str, distances))} tokens of neutral text"
        case Lists(length=length, label=label):
            return f"lists of {length} items, “{label}” balanced at every place"
        case texts:
            return f"design “{texts.design}” over the table “{texts.table}”"


def _probes(study: Study) -> str:
    s = study.statistics
    return (
        f"For every site and layer {_probe(s.classes, s)} was fitted to classes and "
        f"{_probe(s.values, s)} to values, with features standardised on the training rows, over "
        f"{s.folds} folds "
        "that never divide a group and are the same for all sites and layers. Scores are means over held-out folds. "
        f"Controls: {s.shuffles} shuffles of the labels at the level where the label lives; the same probe on "
        "word counts, "
        "and on surface features (length, and frequency where known); labels that are random for each type, where a "
        "target has types. Intervals are percentiles over "
        f"{s.resamples} resamples of the groups, the fitted probes held."
    )


def _probe(name: str, s: Statistics) -> str:
    return NAMES.get(name, name).format(C=s.C)


def _tests(study: Study) -> str:
    s = study.statistics
    if not s.permutations:
        return "No permutation test was asked for, so nothing is said of significance."
    return (
        f"Significance is that of {_probe(s.test, s)} for classes, and of the probe itself for values, "
        "against "
        f"{s.permutations} permutations of the labels, corrected over all layers and sites of a target by the "
        "maximum. Nothing "
        "corrects curves for the number of targets; the table of claims does, by Simes' test."
    )


def _questions(study: Study, card: ModelCard) -> list[str]:
    paragraphs = []
    s = study.statistics
    if any(claim.rule == "order" for claim in study.claims):
        paragraphs.append(
            "Order of peaks: the curves of an experiment's targets were averaged and smoothed over three layers; the "
            "interval is that of the difference of the best layers over resampled groups."
        )
    if study.rise_fall_rise is not None:
        width = 2 * window_reach(card.n_layers) + 1
        how = (
            "fixed beforehand"
            if study.rise_fall_rise.windows
            else "found on one half of the groups and tested on the other"
        )
        paragraphs.append(
            f"Rise, fall, rise: windows of {width} layers, {how}; both contrasts, first and second peak over the "
            "trough, must "
            "pass (intersection-union test at 0.05)."
        )
    if study.coordination is not None:
        paragraphs.append(
            f"Turns between neighbouring layers: targets were fitted on both halves of their groups, {s.splits} "
            "times; curves "
            f"were detrended by a local parabola over {study.coordination.span + 1} layers; reliability is the "
            "correlation "
            "of halves, lag-1 the correlation of one half's layer with the other half's next. The null exchanges the "
            f"deviations among layers within windows of {study.coordination.span} and detrends again."
        )
    return paragraphs


def _switches(study: Study) -> str:
    return (
        f"This is {ORIGIN}. What the paper's abstract leaves open was set here as follows, and can be set otherwise: "
        f"token read “{study.reading.read}”; special tokens {study.reading.add_special_tokens}; no chat template; "
        f"probe “{study.statistics.classes}” with C = {study.statistics.C:g}; {study.statistics.folds} grouped folds; "
        "features standardised, no PCA; stimuli, templates and numbers of texts as in the recorded study below."
    )
