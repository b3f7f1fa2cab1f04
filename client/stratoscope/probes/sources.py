"""Where columns, labels and groups come from: a run with the names of its columns, or arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.probes.errors import ActivationsError, DesignError
from stratoscope.store.run import Run


@dataclass(frozen=True)
class Source:
    """A sweep's input, as arrays.

    columns : mapping of (site, layer) to a float array of shape (n_stimuli, d_model), read when asked for
    facts : for the provenance
    """

    columns: Mapping[Any, Any]
    y: Any
    groups: Any
    types: Any
    ids: Sequence[str] | None
    texts: Sequence[str] | None
    facts: dict[str, Any]


def read_source(
    run_or_arrays: Any,
    y: Any,
    groups: Any,
    *,
    types: Any = None,
    ids: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    selector: str | None = None,
    sites: Sequence[str] | None = None,
) -> Source:
    """Bring what was given into one form. Parameters as in `sweep`.

    Raises
    ------
    DesignError
        If a run lacks a column of stimuli or a site, or no stimulus is labelled.
    ActivationsError
        If arrays hold no column.
    """
    if isinstance(run_or_arrays, Run):
        return _of_run(run_or_arrays, y, groups, types, selector, sites)
    columns = run_or_arrays
    if isinstance(columns, np.ndarray):
        if columns.ndim != 3:
            raise ActivationsError(f"activations have shape {columns.shape}; expected (n_layers, n_stimuli, d_model)")
        columns = {("array", layer): column for layer, column in enumerate(columns)}
    if sites is not None:
        columns = ChosenColumns(columns, None, tuple(sites))
    if not columns:
        raise ActivationsError("activations holds no columns")
    return Source(columns, y, groups, types, ids, texts, {})


class ChosenColumns(Mapping[Any, Any]):
    """A view of some rows of some sites, one column at a time.

    Parameters
    ----------
    columns : mapping of (site, layer) to arrays
    rows : int array of shape (n_chosen,), in any order; None for all as they are
    sites : sequence of str
    """

    def __init__(self, columns: Mapping[Any, Any], rows: NDArray[np.integer[Any]] | None, sites: Sequence[str]) -> None:
        self._columns, self._rows, self._sites = columns, rows, sites

    def __getitem__(self, key: Any) -> Any:
        values = self._columns[key]
        if self._rows is None or np.array_equal(self._rows, np.arange(len(values))):
            return values
        return values[self._rows]

    def __iter__(self) -> Iterator[Any]:
        return (key for key in self._columns if key[0] in self._sites)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _of_run(
    run: Run,
    y: Any,
    groups: Any,
    types: Any,
    selector: str | None,
    sites: Sequence[str] | None,
) -> Source:
    """Columns of stimuli by name; stimuli that lack a label are left out."""
    frame = run.stimuli()
    labels = [y] if isinstance(y, str) else list(y)
    if not all(isinstance(name, str) for name in (*labels, groups)):
        raise DesignError("with a run, y and groups name columns of its stimuli. For arrays pass run.activations().")
    for column in (*labels, groups, *([types] if types is not None else [])):
        if column not in frame.columns:
            names = ", ".join(name for name in frame.columns if name not in ("id", "text"))
            raise DesignError(f"the stimuli of {run.place} have no column {column!r}; they have {names}")
    labelled = frame.with_row_index("row").filter(pl.all_horizontal(pl.col(name).is_not_null() for name in labels))
    if labelled.is_empty():
        raise DesignError(f"no stimulus of {run.place} has a value in column {' and '.join(map(repr, labels))}")
    chosen = selector or (run.selectors[0] if len(run.selectors) == 1 else None)
    suffix = "" if len(run.selectors) == 1 else f" at {chosen}"
    return Source(
        ChosenColumns(run.activations(chosen), labelled["row"].to_numpy(), _sites(run, sites)),
        {f"{name}{suffix}": labelled[name].to_numpy() for name in labels},
        labelled[groups].cast(pl.String).to_numpy(),
        None if types is None else labelled[types].cast(pl.String).to_numpy(),
        labelled["id"].to_list(),
        None if labelled["text"].null_count() else labelled["text"].to_list(),
        {
            "fingerprint": run.card.fingerprint,
            "model": run.card.model,
            "selector": chosen,
            "group": groups,
            "n_without_label": frame.height - labelled.height,
        },
    )


def _sites(run: Run, wanted: Sequence[str] | None) -> Sequence[str]:
    present = list(dict.fromkeys(column.site for column in run.columns))
    for site in wanted or ():
        if site not in present:
            raise DesignError(f"the run {run.place} has no site {site!r}; it has {', '.join(present)}")
    return list(wanted) if wanted else present
