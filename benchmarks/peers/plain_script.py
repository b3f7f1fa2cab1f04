"""The whole job as a researcher would write it: a Hugging Face loop, NumPy, and a scikit-learn pipeline per column.

One text at a time, with hooks that keep the last token; then, at every layer and site, cross-validation of
``make_pipeline(StandardScaler(), SVC)`` or ``GridSearchCV(Ridge)``, columns in parallel over the cores. Run as
``python -m peers.plain_script ORDER.json OUT.json``; the order has the model's folder, the experiments' texts, labels,
groups and folds, and the penalties.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import sklearn
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from transformers import AutoModel, AutoTokenizer

Features = dict[str, npt.NDArray[np.float32]]


def main() -> None:
    """Collect and fit every experiment."""
    order = json.loads(Path(sys.argv[1]).read_text())
    sklearn.set_config(enable_metadata_routing=True)
    torch.set_num_threads(order["threads"])
    began = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(order["model"])
    model = AutoModel.from_pretrained(order["model"], dtype=torch.bfloat16).eval()
    told: dict[str, Any] = {"load": time.perf_counter() - began, "collect": 0.0, "fit": 0.0, "curves": {}}
    for experiment in order["experiments"]:
        began = time.perf_counter()
        features = collect(model, tokenizer, experiment["texts"])
        told["collect"] += time.perf_counter() - began
        began = time.perf_counter()
        for target in experiment["targets"]:
            name = f"{experiment['name']}/{target['label']}"
            told["curves"][name] = fit(features, target, order)
        told["fit"] += time.perf_counter() - began
    Path(sys.argv[2]).write_text(json.dumps(told))


@torch.inference_mode()
def collect(model: Any, tokenizer: Any, texts: Sequence[str]) -> Features:
    """Return the last token's states (n_texts, d_model) by column."""
    states: dict[str, list[npt.NDArray[np.float32]]] = {}
    handles = []
    for layer, block in enumerate(model.layers):
        for site, module in (("resid_post", block), ("attn_out", block.self_attn), ("mlp_out", block.mlp)):

            def keep(_module: object, _args: object, output: Any, name: str = f"{site}.{layer}") -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                states.setdefault(name, []).append(hidden[0, -1].float().numpy())

            handles.append(module.register_forward_hook(keep))
    for text in texts:
        model(**tokenizer(text, return_tensors="pt"), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: np.stack(rows) for name, rows in states.items()}


def fit(features: Features, target: Mapping[str, Any], order: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return of every column the mean score over folds of each label vector: as given, then the shuffled ones."""
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        scores = joblib.Parallel(n_jobs=order["threads"])(
            joblib.delayed(score)(X, target, order) for X in features.values()
        )
    return dict(zip(features, scores, strict=True))


def score(X: npt.NDArray[np.float32], target: Mapping[str, Any], order: Mapping[str, Any]) -> list[float]:
    """Cross-validate one column."""
    sklearn.set_config(enable_metadata_routing=True)  # a process of its own begins with the default
    if target["probe"] == "svm":
        estimator: Any = SVC(kernel="linear", C=order["C"], tol=order["tolerance"])
        scoring, params = "balanced_accuracy", None
    else:
        grid, inner = {"alpha": order["alphas"]}, GroupKFold(order["inner_folds"])
        estimator = GridSearchCV(Ridge(), grid, cv=inner, scoring="neg_mean_squared_error")
        scoring, params = "r2", {"groups": np.array(target["groups"])}
    pipeline, folds = make_pipeline(StandardScaler(), estimator), PredefinedSplit(target["fold_of"])
    rows = X.astype(np.float64)
    return [
        float(cross_val_score(pipeline, rows, np.array(y), cv=folds, scoring=scoring, params=params).mean())
        for y in target["vectors"]
    ]


if __name__ == "__main__":
    main()
