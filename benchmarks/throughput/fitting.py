"""Probe fits beside plain scikit-learn: one layer, the same folds, the same choice of the hyper-parameter."""

import sklearn
from probes import ALPHAS, FOLDS, C, Layers, engine, plain_fold
from sklearn.linear_model import Ridge
from sklearn.svm import SVC

from throughput.figure import Figure


def measure(*, n_stimuli: int = 120, d_model: int = 256, n_layers: int = 4, rounds: int = 3) -> list[Figure]:
    """Time both in turn; the documented size is 600 stimuli, 3072 dimensions, 28 layers.

    Plain scikit-learn is timed on one outer fold of one layer and scaled to all folds: it takes the same for each.
    """
    sizes: dict[str, float] = {"n_stimuli": n_stimuli, "d_model": d_model, "n_layers": n_layers}
    layers = Layers(n_stimuli, d_model, n_layers)
    ours: dict[str, list[float]] = {"svm": [], "ridge": []}
    plain: dict[str, list[float]] = {"svm": [], "ridge": []}
    with sklearn.config_context(enable_metadata_routing=True):
        engine(layers, layers.y, "svm", C=C)
        for _ in range(rounds):
            ours["svm"].append(engine(layers, layers.y, "svm", C=C).wall / n_layers)
            ours["ridge"].append(engine(layers, layers.graded, "ridge", alpha=ALPHAS).wall / n_layers)
            svm = plain_fold(layers, layers.y, SVC(kernel="linear"), {"C": C}, "balanced_accuracy")
            ridge = plain_fold(layers, layers.graded, Ridge(), {"alpha": ALPHAS}, "neg_mean_squared_error")
            plain["svm"].append(svm.times(FOLDS).wall)
            plain["ridge"].append(ridge.times(FOLDS).wall)
    return [
        Figure("probe", subject, f"{probe}, one layer", "s", tuple(seconds[probe]), sizes, limit)
        for probe in ours
        for subject, seconds, limit in (
            ("scikit-learn", plain, ""),
            ("stratoscope", ours, f"scikit-learn/{probe}, one layer"),
        )
    ]
