"""The fits of a study: one analysis each, from rows and a label to a result on disk that is never computed twice."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from stratoscope.errors import RunError
from stratoscope.probes import PROBES, DesignError, ProbeWarning, SweepResult, load, save, sweep
from stratoscope.probes.provenance import versions
from stratoscope.probes.sources import ChosenColumns
from stratoscope.store.run import Run
from stratoscope.study.config import Experiment, Statistics, Study, Target
from stratoscope.study.stimuli import ID, parts_of, rows_of
from stratoscope.study.workspace import Workspace, digest, write_json

RECORD: Final = "fit.json"
Columns = Mapping[Any, Any]
Tick = Callable[[int, int], None]
Rows = pl.DataFrame


@dataclass(frozen=True)
class Fit:
    """One analysis: a target of an experiment, at one value of ``target.by`` if it has one.

    Attributes
    ----------
    rows
        Stimuli with labels and groups.
    part
        The value; ``None`` if the target is not divided.
    """

    experiment: Experiment
    target: Target
    rows: Rows
    part: object = None

    @property
    def name(self) -> str:
        """Name of the target, with the part."""
        return self.target.title if self.part is None else f"{self.target.title} at {self.part}"

    @property
    def title(self) -> str:
        """Name of experiment and target, for people."""
        return f"{self.experiment.name}/{self.name}"

    @property
    def groups(self) -> pl.Series:
        """What must not cross folds, one name per stimulus."""
        return self.rows[self.target.group or self.experiment.group].cast(pl.String)

    @property
    def distance(self) -> int | None:
        """Nominal tokens between target and reading, where the experiment has such."""
        return self.part if isinstance(self.part, int) and self.target.by == "distance" else None

    def folder(self, workspace: Workspace) -> Path:
        """Where its results lie."""
        parts = () if self.part is None else (f"{self.target.by}-{self.part}",)
        return workspace.fit(self.experiment.name, self.target.title, *parts)

    def with_rows(self, rows: Rows) -> Fit:
        """Return the same analysis of other stimuli."""
        return Fit(self.experiment, self.target, rows, self.part)

    def probe(self, statistics: Statistics) -> str:
        """Return the probe whose curve is shown."""
        return statistics.classes if self.target.kind == "classes" else statistics.values

    @property
    def metric(self) -> str:
        """Metric with many possible values, for questions about the shape of a curve."""
        return "roc_auc" if self.target.kind == "classes" else "pearson"


def list_fits(study: Study, stimuli: Mapping[str, Rows]) -> list[Fit]:
    """List the analyses of a study, experiment by experiment."""
    return [
        Fit(experiment, target, rows_of(stimuli[experiment.name], target, part), part)
        for experiment in study.experiments
        for target in experiment.targets
        for part in parts_of(stimuli[experiment.name], target)
    ]


def by_experiment(fits: Sequence[Fit]) -> dict[str, list[Fit]]:
    """Group fits by experiment, in order."""
    return {name: list(group) for name, group in groupby(fits, key=lambda fit: fit.experiment.name)}


def read_columns(run: Run, ids: Sequence[str], sites: Sequence[str] | None = None) -> Columns:
    """Return the columns of a run for some stimuli, in their order; held in memory if they are not too large.

    Returns
    -------
    mapping of (site, layer) to float32 arrays of shape (n_stimuli, width)
    """
    row_of = {name: row for row, name in enumerate(run.stimuli()["id"])}
    lost = [name for name in ids if name not in row_of]
    if lost:
        raise RunError(f"the run {run.path} lacks {len(lost)} stimuli of the study, first {lost[0]!r}: collect them")
    present = tuple(dict.fromkeys(column.site for column in run.columns))
    rows = np.array([row_of[name] for name in ids])
    columns = ChosenColumns(run.activations(), rows, tuple(sites or present))
    n_bytes = 4 * len(ids) * sum(column.width for column in run.columns if column.site in (sites or present))
    return {key: columns[key] for key in columns} if n_bytes <= memory_to_hold() else columns


def memory_to_hold() -> int:
    """Return the bytes of columns that may be held: a quarter of the machine's memory, 2 GiB where that is not told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # not on every system
        return 2 << 30


def fit_main(fit: Fit, columns: Columns, study: Study, workspace: Workspace, fingerprint: str, tick: Tick) -> None:
    """Fit what is shown, what is tested, and the surface baseline (by the probe that is tested); see `load_fit`."""
    statistics, folder = study.statistics, fit.folder(workspace)
    is_tested_itself = fit.target.kind == "values"
    controls = ("shuffled", "text", *(("type",) if fit.target.types else ()))
    fit_once(
        fit, columns, folder / "main", fingerprint, tick, **settings_of(fit.probe(statistics), statistics),
        controls=controls, n_shuffles=statistics.shuffles, types=fit.target.types,
        permutations=statistics.permutations if is_tested_itself else 0,
    )  # fmt: skip
    if not is_tested_itself and statistics.permutations:
        fit_once(
            fit, columns, folder / "test", fingerprint, tick, **settings_of(statistics.test, statistics),
            controls=("shuffled",), n_shuffles=statistics.shuffles, permutations=statistics.permutations,
        )  # fmt: skip
    if fit.experiment.surface:
        # Not the SVM: on a few features that do not separate the classes, LIBSVM takes a minute.
        quick = statistics.values if is_tested_itself else statistics.test
        fit_once(
            fit, surface_columns(fit), folder / "surface", fingerprint, tick, **settings_of(quick, statistics),
            controls=(),
        )  # fmt: skip


def surface_columns(fit: Fit) -> Columns:
    """Return what can be known of a text without reading it: the experiment's surface columns, (n_stimuli, n_columns).

    A missing value becomes the mean of the others.
    """
    frame = fit.rows.select(pl.col(name).cast(pl.Float64).fill_null(strategy="mean") for name in fit.experiment.surface)
    return {("surface", None): frame.to_numpy()}


def fit_once(
    fit: Fit,
    columns: Columns,
    folder: Path,
    fingerprint: str,
    tick: Tick,
    *,
    types: str | None = None,
    **settings: Any,  # noqa: ANN401 - those of sweep
) -> SweepResult:
    """Sweep, unless the same sweep lies in the folder; warnings are kept with the result.

    Parameters
    ----------
    fingerprint
        Of the model, which the columns are of.
    types
        Column of the type-consistent control.
    **settings
        Of `stratoscope.probes.sweep`.
    """
    rows = fit.rows
    # What belongs to no type is a type of its own group.
    type_of = None if types is None else rows[types].cast(pl.String).fill_null(fit.groups).to_list()
    spec = {
        "fingerprint": fingerprint, "columns": [list(key) for key in columns], "ids": rows[ID].to_list(),
        "labels": rows[fit.target.label].to_list(), "groups": fit.groups.to_list(), "target": fit.target.title,
        "types": type_of,
        "surface": rows.select(fit.experiment.surface).rows() if next(iter(columns))[0] == "surface" else None,
        "settings": settings, "versions": versions(),
    }  # fmt: skip
    record, name = folder / RECORD, digest(spec)
    if record.exists() and json.loads(record.read_text("utf-8"))["digest"] == name:
        return next(iter(load(folder).values()))
    record.unlink(missing_ok=True)
    with warnings.catch_warnings(record=True) as told, _named(fit, folder):
        warnings.simplefilter("always", ProbeWarning)
        result = sweep(
            columns, rows[fit.target.label].to_numpy(), groups=fit.groups.to_numpy(), ids=rows[ID].to_list(),
            texts=rows["text"].to_list(), target=fit.target.title,
            types=type_of, checkpoint=folder / "checkpoints",
            progress=tick, say=lambda _: None, n_jobs=-1, **settings,
        )  # fmt: skip
    save(result, folder)
    notes = [str(one.message) for one in told if issubclass(one.category, ProbeWarning)]
    for one in told:
        if not issubclass(one.category, ProbeWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    write_json(record, {"digest": name, "warnings": notes, "spec": {k: spec[k] for k in ("fingerprint", "settings")}})
    shutil.rmtree(folder / "checkpoints")
    return result


@contextmanager
def _named(fit: Fit, folder: Path) -> Iterator[None]:
    """Say which analysis could not be made."""
    try:
        yield
    except DesignError as error:
        raise DesignError(f"{fit.title}, {folder.name}: {error}") from error


def settings_of(probe: str, statistics: Statistics) -> dict[str, Any]:
    """Return the settings of a study's sweeps with a probe."""
    penalty = {"C": statistics.C} if probe in PROBES and PROBES[probe].hyper == "C" else {}
    return {"probe": probe, "cv": statistics.folds, "seed": statistics.seed, **penalty}


def load_fit(fit: Fit, part: str, workspace: Workspace) -> SweepResult | None:
    """Read a result of a fit: ``"main"``, ``"test"``, ``"surface"`` or a half; ``None`` where there is none."""
    folder = fit.folder(workspace) / part
    return next(iter(load(folder).values())) if (folder / RECORD).exists() else None


def told(fit: Fit, workspace: Workspace) -> list[str]:
    """Return the warnings of a fit."""
    records = sorted(fit.folder(workspace).glob(f"*/{RECORD}"))
    return [line for record in records for line in json.loads(record.read_text("utf-8"))["warnings"]]
