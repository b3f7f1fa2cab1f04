"""Probing a run: from a label column of its stimuli to a result on disk."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from stratoscope.columns import ColumnKey
from stratoscope.probes import DesignError, SweepResult, save, sweep
from stratoscope.rows import FloatArray
from stratoscope.store.run import Run
from stratoscope.targets import Target


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How a target is probed.

    Attributes
    ----------
    selector
        Label of the selector whose rows are used; ``None`` if the run has only one.
    sites
        Sites to probe; ``None`` for all of the run.
    n_folds, n_shuffles, seed
        Outer folds, shuffled label vectors, and the seed of both.
    n_jobs
        Columns fitted at the same time; -1 for one per core.
    """

    selector: str | None = None
    sites: tuple[str, ...] | None = None
    n_folds: int = 5
    n_shuffles: int = 5
    seed: int = 0
    n_jobs: int = -1


def probe_run(
    run: Run,
    target: Target,
    settings: ProbeSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SweepResult:
    """Fit a probe on every column of a run and save the result under ``RUN/results``.

    Stimuli whose label is missing are left out; the result's provenance says how many.

    Parameters
    ----------
    progress
        Called with the number of columns done and in all.

    Raises
    ------
    stratoscope.probes.DesignError
        If the run lacks a column or site, no stimulus has the label, or labels and groups cannot carry the probe.
    stratoscope.probes.ActivationsError
        If a column of activations cannot be probed.
    """
    chosen = settings or ProbeSettings()
    frame = run.stimuli()
    for column in (target.label, target.group):
        if column not in frame.columns:
            names = ", ".join(name for name in frame.columns if name not in ("id", "text"))
            raise DesignError(f"the stimuli of {run.path} have no column {column!r}; they have {names}")
    labelled = frame.with_row_index("row").filter(pl.col(target.label).is_not_null())
    if labelled.is_empty():
        raise DesignError(f"no stimulus of {run.path} has a value in column {target.label!r}")
    texts = None if labelled["text"].null_count() else labelled["text"].to_list()
    selector = chosen.selector or (run.selectors[0] if len(run.selectors) == 1 else None)
    result = sweep(
        _ChosenRows(run.activations(selector), labelled["row"].to_numpy(), _sites(run, chosen.sites)),
        labelled[target.label].to_numpy(),
        groups=labelled[target.group].cast(pl.String).to_numpy(),
        probe=target.probe,
        folds=chosen.n_folds,
        ids=labelled["id"].to_list(),
        texts=texts,
        target=target.label if len(run.selectors) == 1 else f"{target.label} at {selector}",
        controls=("shuffled", "text") if texts is not None else ("shuffled",),
        n_shuffles=chosen.n_shuffles,
        n_jobs=chosen.n_jobs,
        seed=chosen.seed,
        progress=progress,
    )
    facts = {
        "fingerprint": run.card.fingerprint,
        "model": run.card.model,
        "selector": selector,
        "group": target.group,
        "n_without_label": frame.height - labelled.height,
    }
    result = dataclasses.replace(result, provenance={**result.provenance, **facts})
    save(result, run.path)
    return result


class _ChosenRows(Mapping[ColumnKey, FloatArray]):
    """A view of some rows of some sites of a run, one column at a time."""

    def __init__(
        self, columns: Mapping[ColumnKey, FloatArray], rows: npt.NDArray[np.integer], sites: Sequence[str]
    ) -> None:
        self._columns = columns
        self._rows = rows
        self._sites = sites

    def __getitem__(self, key: ColumnKey) -> FloatArray:
        values = self._columns[key]
        return values if len(self._rows) == len(values) else values[self._rows]

    def __iter__(self) -> Iterator[ColumnKey]:
        return (key for key in self._columns if key[0] in self._sites)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _sites(run: Run, wanted: Sequence[str] | None) -> Sequence[str]:
    present = list(dict.fromkeys(column.site for column in run.columns))
    for site in wanted or ():
        if site not in present:
            raise DesignError(f"the run {os.fspath(run.path)} has no site {site!r}; it has {', '.join(present)}")
    return list(wanted) if wanted else present
