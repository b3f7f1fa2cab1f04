"""Which rows belong to which stimulus, and bringing them into the stimuli's order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stratoscope_wire.selectors import is_single_row

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class SelectorRows:
    """Rows of one selector.

    Attributes
    ----------
    rows : intp array of shape (n_selected,)
        Row numbers, ordered by stimulus, then as they came.
    counts : intp array of shape (n_stimuli,)
        Rows per stimulus.
    """

    rows: IndexArray
    counts: IndexArray

    @property
    def ends(self) -> IndexArray:
        """Where the rows of one stimulus end and those of the next begin, shape (n_stimuli - 1,)."""
        return np.cumsum(self.counts)[:-1]


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Finds the rows of stimuli in a pile of rows.

    Attributes
    ----------
    n_rows
        Rows in the pile.
    selectors
        Rows per selector label.
    position, token_id : int32 array of shape (n_rows,)
        -1 in a pooled row.
    """

    n_rows: int
    selectors: Mapping[str, SelectorRows]
    position: IntArray
    token_id: IntArray

    @classmethod
    def of(cls, keys: pa.Table, ids: Sequence[str], labels: Sequence[str]) -> "RowIndex":
        """Index rows.

        Parameters
        ----------
        keys
            Table with the columns ``stimulus_id, selector, position, token_id``. Rows of other stimuli are left out.
        ids
            Stimuli, in the order wanted.
        labels
            Labels of the selectors.

        Raises
        ------
        ValueError
            If a stimulus lacks rows, or has more than its selector gives.
        """
        stimulus = _codes(keys.column("stimulus_id"), ids)
        selector = _codes(keys.column("selector"), labels)
        selectors = {}
        for code, label in enumerate(labels):
            rows = np.flatnonzero((selector == code) & (stimulus >= 0))
            rows = rows[np.argsort(stimulus[rows], kind="stable")]
            counts = np.bincount(stimulus[rows], minlength=len(ids))
            _check(counts, ids, label)
            selectors[label] = SelectorRows(rows, counts)
        numbers = (np.from_dlpack(keys.column(name).combine_chunks()) for name in ("position", "token_id"))
        position, token_id = (one.astype(np.int32, copy=False) for one in numbers)
        return cls(keys.num_rows, selectors, position, token_id)

    def target(self, label: str) -> IndexArray:
        """Say which row of a selector's answer each row of the pile is, intp of shape (n_rows,); -1 for none."""
        wanted = self.selectors[label].rows
        target = np.full(self.n_rows, -1, np.intp)
        target[wanted] = np.arange(len(wanted))
        return target

    def gather(self, label: str, chunks: Iterable[npt.NDArray[Any]], width: int) -> FloatArray:
        """Bring one column's rows of a selector into order.

        Parameters
        ----------
        chunks : arrays of shape (n, width)
            The pile in consecutive pieces, n_rows in all.

        Returns
        -------
        float32 array of shape (n_selected, width)
        """
        target = self.target(label)
        values = np.empty((len(self.selectors[label].rows), width), np.float32)
        start = 0
        for chunk in chunks:
            here = target[start : start + len(chunk)]
            kept = here >= 0
            values[here[kept]] = chunk[kept]
            start += len(chunk)
        if start != self.n_rows:
            raise ValueError(f"a column has {start} rows, its keys {self.n_rows}")
        return values


def _codes(column: pa.ChunkedArray, values: Sequence[str]) -> IndexArray:
    found = pc.fill_null(pc.index_in(column, value_set=pa.array(values, pa.utf8())), -1)
    return np.from_dlpack(found.combine_chunks()).astype(np.intp)


def _check(counts: IndexArray, ids: Sequence[str], label: str) -> None:
    wrong = np.flatnonzero(counts != 1 if is_single_row(label) else counts == 0)
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"stimulus {ids[first]!r} has {counts[first]} rows for selector {label!r} "
            f"({len(wrong)} of {len(ids)} stimuli are affected)"
        )
