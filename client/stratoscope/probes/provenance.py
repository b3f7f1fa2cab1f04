"""What a sweep records of itself: settings, folds, targets, seed and versions, as JSON can hold them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from stratoscope.probes.baselines import label_level
from stratoscope.probes.folds import folds_hash
from stratoscope.probes.task import Analysis, Task

PACKAGES = ("stratoscope", "scikit-learn", "numpy", "scipy", "polars")


def provenance(task: Task, controls: Sequence[str], seed: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Say how the numbers of a sweep were made; the facts of one analysis lie flat, several are under ``analyses``."""
    common = {
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(task.settings).items()},
        "controls": list(controls),
        "seed": seed,
        "n_stimuli": len(task.ids),
        "n_groups": len(np.unique(task.groups)),
        "n_folds": len(task.splits),
        "folds_sha256": folds_hash(task.ids, task.fold_of),
        "versions": versions(),
        **facts,
    }
    analyses = [_analysis(one, task) for one in task.analyses]
    return {**common, **analyses[0]} if len(analyses) == 1 else {**common, "analyses": analyses}


def versions() -> dict[str, str]:
    """Versions of everything that computes."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _analysis(one: Analysis, task: Task) -> dict[str, Any]:
    drawn = [control for control, _ in one.labels.vectors]
    return {
        "target": one.labels.name,
        "probe": one.probe.name,
        "hyper": one.probe.hyper,
        "criterion": one.probe.criterion,
        "estimator": one.probe.identity,
        "kind": one.labels.kind,
        "classes": list(one.labels.classes),
        "label_level": label_level(one.labels.given, task.group_of),
        "n_shuffles": drawn.count("shuffled"),
        "n_permutations": drawn.count("permuted"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
