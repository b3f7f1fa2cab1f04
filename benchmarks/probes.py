"""Times the probe engine against plain scikit-learn, side by side in one run, and draws how its cost grows.

    python benchmarks/probes.py speed growth large-svm large-permutations --out docs/images

Activations are random with a few strong directions and one that holds the label, as float32, with the same label and
groups of two at every layer. "Plain" is `cross_val_score` over `make_pipeline(StandardScaler(), GridSearchCV(...))`
with the same outer and the same grouped inner folds: the numbers that the engine gives, by the obvious code. It is
timed on one outer fold of one layer and scaled, as it would otherwise take days; the engine is timed in full. Both
wall time and CPU time (of all threads) are given: on a busy machine the ratio of CPU times is the one to trust.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratoscope.probes import sweep

C = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ALPHAS = tuple(float(alpha) for alpha in np.geomspace(1.0, 1e6, 10))
FOLDS = 5


class Layers(Mapping[tuple[str, int | None], NDArray[np.float32]]):
    """Columns that are made when asked for, and then forgotten."""

    def __init__(self, n: int, d: int, n_layers: int, sites: tuple[str, ...] = ("resid_post",)) -> None:
        self.shape, self.n_layers, self.sites = (n, d), n_layers, sites
        rng = np.random.default_rng(0)
        self.groups = np.arange(n) // 2
        self.y = rng.permutation(self.groups.max() + 1)[self.groups] % 2
        self.graded = self.y + rng.normal(size=n)

    def __getitem__(self, key: tuple[str, int | None]) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.SFC64([self.sites.index(key[0]), key[1] or 0]))
        n, d = self.shape
        X = rng.standard_normal((n, d), dtype=np.float32)
        strong = rng.standard_normal((n, 20), dtype=np.float32) @ rng.standard_normal((20, d), dtype=np.float32)
        label = (self.y - 0.5).astype(np.float32)[:, None] * rng.standard_normal(d, dtype=np.float32)
        return np.asarray(X + 0.5 * strong + 0.25 * label, dtype=np.float32)

    def __iter__(self) -> Iterator[tuple[str, int | None]]:
        return ((site, layer) for site in self.sites for layer in range(self.n_layers))

    def __len__(self) -> int:
        return len(self.sites) * self.n_layers


class Seconds(NamedTuple):
    wall: float
    cpu: float

    def times(self, factor: float) -> "Seconds":
        return Seconds(self.wall * factor, self.cpu * factor)


def timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def engine(layers: Layers, y: NDArray[Any], probe: str, n_jobs: int = -1, **settings: Any) -> Seconds:
    """Seconds of one sweep, making the columns included."""

    quiet: dict[str, Any] = {"controls": (), "say": lambda _: None, **settings}

    def work() -> None:
        sweep(layers, y, groups=layers.groups, probe=probe, cv=FOLDS, n_jobs=n_jobs, **quiet)

    return timed(work)


def plain_fold(layers: Layers, y: NDArray[Any], estimator: Any, grid: dict[str, Any], scoring: str) -> Seconds:
    """Seconds of `cross_val_score` on one outer fold of one layer, grid search over grouped inner folds included."""
    X = layers["resid_post", 0].astype(np.float64)
    split = next(GroupKFold(FOLDS).split(X, y, layers.groups))
    search = GridSearchCV(estimator, grid, cv=GroupKFold(5), scoring=scoring)
    pipeline = make_pipeline(StandardScaler(), search)
    return timed(
        lambda: cross_val_score(
            pipeline, X, y, cv=[split], scoring=scoring, params={"groups": layers.groups}, error_score="raise"
        )
    )


def plain_ridge_cv(layers: Layers) -> Seconds:
    """Seconds of five folds of RidgeCV, which chooses alpha by leave-one-out and so ignores the groups."""
    X = layers["resid_post", 0].astype(np.float64)
    splits = list(GroupKFold(FOLDS).split(X, layers.graded, layers.groups))
    return timed(lambda: cross_val_score(make_pipeline(StandardScaler(), RidgeCV(ALPHAS)), X, layers.graded, cv=splits))


def speed(n: int, d: int, n_layers: int, scale_to: int) -> dict[str, Any]:
    """Time both sides at one size; seconds for `scale_to` layers."""
    layers = Layers(n, d, n_layers)
    per_layer = scale_to / n_layers
    ours = {
        "svm": engine(layers, layers.y, "svm", C=C).times(per_layer),
        "ridge": engine(layers, layers.graded, "ridge", alpha=ALPHAS).times(per_layer),
        "permutations": engine(layers, layers.graded, "ridge", alpha=ALPHAS, permutations=1000).times(per_layer),
    }
    svm = plain_fold(layers, layers.y, SVC(kernel="linear"), {"C": C}, "balanced_accuracy")
    ridge = plain_fold(layers, layers.graded, Ridge(), {"alpha": ALPHAS}, "neg_mean_squared_error")
    plain = {
        "svm": svm.times(FOLDS * scale_to),
        "ridge": ridge.times(FOLDS * scale_to),
        "permutations": ridge.times(FOLDS * scale_to * 1001),
    }
    return {
        "n": n, "d": d, "layers timed": n_layers, "layers": scale_to,
        "engine_s": ours, "plain_s": plain,
        "ratio_wall": {name: plain[name].wall / ours[name].wall for name in ours},
        "ratio_cpu": {name: plain[name].cpu / ours[name].cpu for name in ours},
        "plain fold timed_s": {"svm": svm, "ridge": ridge},
        "ridge_cv_s": plain_ridge_cv(layers).times(scale_to),
    }  # fmt: skip


def growth() -> dict[str, list[tuple[int, Seconds]]]:
    """Time sweeps of ridge with ten alphas at n = 600, d = 3072, over layers and over permutations."""
    engine(Layers(600, 3072, 2), Layers(600, 3072, 2).graded, "ridge", alpha=ALPHAS)  # warm
    by_layers = [
        (n_layers, engine(layers, layers.graded, "ridge", alpha=ALPHAS))
        for n_layers in (2, 4, 8, 16, 28, 56)
        for layers in [Layers(600, 3072, n_layers)]
    ]
    layers = Layers(600, 3072, 8)
    by_permutations = [
        (n, engine(layers, layers.graded, "ridge", alpha=ALPHAS, permutations=n))
        for n in (0, 100, 250, 500, 1000, 2000)
    ]
    return {"layers": by_layers, "permutations": by_permutations}


def draw_growth(found: dict[str, list[tuple[int, Seconds]]], path: Path) -> None:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, title in (
        (left, "layers", "ridge, ten alphas"),
        (right, "permutations", "8 layers, ridge, ten alphas, alpha chosen anew in each"),
    ):
        x, y = [n for n, _ in found[name]], [seconds.cpu for _, seconds in found[name]]
        axes.plot(x, y, "o-", color="#0072B2")
        axes.set(xlabel=name, ylabel="CPU seconds", title=title, ylim=(0, None), xlim=(0, None))
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.2)
    once = found["permutations"][0][1].cpu
    right.plot([0, 20], [once, once * 21], "--", color="#D55E00", label="if each permutation cost a sweep")
    right.legend(fontsize=8, frameon=False)
    figure.suptitle("n = 600, d = 3072, 5 outer folds, 5 inner folds, two cores", fontsize=10)
    figure.savefig(path, dpi=160)


def large(probe: str, **settings: Any) -> dict[str, Any]:
    """80 layers x 3 sites at n = 1000, d = 8192."""
    layers = Layers(1000, 8192, 80, ("resid_post", "attn_out", "mlp_out"))
    idle = peak_mib()
    making = timed(lambda: [layers["resid_post", layer] for layer in range(4)]).times(len(layers) / 4)
    seconds = engine(layers, layers.y, probe, **settings)
    return {"probe": probe, "columns": len(layers), "seconds": seconds, "of which making columns": making,
            "peak MiB": peak_mib(), "peak MiB before": idle, **{k: str(v) for k, v in settings.items()}}  # fmt: skip


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["speed", "growth", "large-svm", "large-permutations"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    chosen = parser.parse_args()
    sklearn.set_config(enable_metadata_routing=True)
    say(host=platform.processor() or platform.machine(), cores=os.cpu_count(), load=os.getloadavg(),
        python=sys.version.split()[0], sklearn=sklearn.__version__, numpy=np.__version__)  # fmt: skip
    if "speed" in chosen.what:
        for size in ((600, 3072, 28, 28), (1000, 8192, 8, 80)):
            say(**speed(*size), load=os.getloadavg())
    if "growth" in chosen.what:
        found = growth()
        say(growth=found, load=os.getloadavg())
        draw_growth(found, chosen.out / "probes-growth.png")
    if "large-svm" in chosen.what:
        say(**large("svm", C=C), load=os.getloadavg())
    if "large-permutations" in chosen.what:
        say(**large("ridge_classifier", alpha=ALPHAS, permutations=1000), load=os.getloadavg())


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
