"""Checkpoints: the fit of every finished column on disk, so that an interrupted sweep goes on where it stopped.

A file is found by content: the digest of the task (labels, folds, settings, probes, versions) names the folder, that of
the column's values the file. Neither an altered task nor an altered column can be taken for another.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratoscope.probes.column import AnalysisFit, ColumnFit, Key, column_name
from stratoscope.probes.errors import ResultsError
from stratoscope.probes.provenance import versions
from stratoscope.probes.task import Task
from stratoscope.store.durable import replace_file

DIGITS = 24


class Checkpoints:
    """Fits of one task under a folder.

    Parameters
    ----------
    folder : path
        Made if missing.
    task : Task
    """

    def __init__(self, folder: str | os.PathLike[str], task: Task) -> None:
        self.folder = Path(folder) / task_digest(task)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: Key, X: NDArray[Any]) -> Path:
        """Where the fit of a column is, or will be."""
        values = hashlib.sha256(f"{X.shape}{X.dtype}".encode())
        values.update(np.ascontiguousarray(X).data)
        return self.folder / f"{column_name(key)}-{values.hexdigest()[:DIGITS]}.npz"

    def load(self, path: Path) -> ColumnFit | None:
        """Read a fit; None if it is not there.

        Raises
        ------
        ResultsError
            If the file is damaged.
        """
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                n_constant, n_fits = (int(number) for number in arrays["counts"])
                fits = [AnalysisFit(*(arrays[f"{i}.{name}"] for name in AnalysisFit._fields)) for i in range(n_fits)]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ResultsError(f"checkpoint {path} is damaged ({error}). Delete it, and run the same again.") from error
        return ColumnFit(n_constant, tuple(fits))

    def save(self, path: Path, fit: ColumnFit) -> None:
        """Write a fit under a temporary name, fsync it and put it in place: a file that exists is whole."""
        arrays = {f"{i}.{name}": array for i, one in enumerate(fit.fits) for name, array in one._asdict().items()}
        arrays["counts"] = np.array([fit.n_constant, len(fit.fits)])
        replace_file(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def task_digest(task: Task) -> str:
    """Name a task by everything that its numbers depend on, the activations apart."""
    facts = {
        "settings": asdict(task.settings),
        "versions": versions(),
        "ids": task.ids,
        "groups": task.groups.tolist(),
        "folds": task.fold_of.tolist(),
        "analyses": [
            [
                one.labels.name,
                one.labels.kind,
                one.labels.classes,
                one.labels.vectors,
                one.probe.name,
                one.probe.identity,
            ]
            for one in task.analyses
        ],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for one in task.analyses:
        digest.update(np.ascontiguousarray(one.labels.Y).data)
    return digest.hexdigest()[:DIGITS]
