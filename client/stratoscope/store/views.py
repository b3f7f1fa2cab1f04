"""Views of a run's activations that read one column when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from stratoscope.columns import ColumnKey, column_key, find_column
from stratoscope.errors import ShardDamagedError
from stratoscope.rows import FloatArray, RowIndex
from stratoscope.store.objects import RunPath
from stratoscope.store.shard import read_column
from stratoscope_wire import Column

T = TypeVar("T")


class _RunView(Mapping[ColumnKey, T]):
    """Columns of a run under one selector.

    Attributes
    ----------
    selector : str
        Its label.
    columns : tuple of Column
        What there is.
    """

    def __init__(
        self, columns: Sequence[Column], n_layers: int, shard_paths: Sequence[RunPath], index: RowIndex, selector: str
    ) -> None:
        self.columns = tuple(columns)
        self.selector = selector
        self._n_layers = n_layers
        self._shard_paths = shard_paths
        self._index = index

    def __iter__(self) -> Iterator[ColumnKey]:
        return (column_key(column) for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} columns, selector {self.selector!r})"

    def _rows(self, key: ColumnKey | str) -> FloatArray:
        site, layer = (key, None) if isinstance(key, str) else key
        column = find_column(self.columns, site, layer, self._n_layers)
        try:
            return self._index.gather(self.selector, read_column(self._shard_paths, column), column.width)
        except ValueError as error:
            raise ShardDamagedError(f"column {column.name} cannot be read: {error}") from None


class RunColumns(_RunView[FloatArray]):
    """``(site, layer)`` to a float32 array of shape (n_stimuli, width)."""

    def __getitem__(self, key: ColumnKey | str) -> FloatArray:
        return self._rows(key)


class RunTokens(_RunView[list[FloatArray]]):
    """``(site, layer)`` to a list of n_stimuli float32 arrays of shape (n_tokens, width)."""

    def __getitem__(self, key: ColumnKey | str) -> list[FloatArray]:
        return np.split(self._rows(key), self._index.selectors[self.selector].ends)
