"""Activations of stimuli, held in memory as they came."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from stratoscope.columns import column_key, find_column
from stratoscope.errors import CorruptAnswerError
from stratoscope.rows import FloatArray, IntArray, RowIndex
from stratoscope_wire import Column, ModelCard
from stratoscope_wire.dtypes import to_float32
from stratoscope_wire.request import Dtype
from stratoscope_wire.schema import KEY_FIELDS
from stratoscope_wire.selectors import is_single_row

Key = str | tuple[str, int | None] | tuple[str, int | None, str]
"""``(site, layer)`` or ``(site, layer, selector)``; a column's name also finds it."""

Values = FloatArray | list[FloatArray]


class Activations(Mapping[Key, Values]):
    """Activations by site and layer: ``acts["resid_post", 12]``.

    With a single selector the keys are ``(site, layer)``, with several ``(site, layer, selector)``. A selector of one
    row per stimulus gives a float32 array of shape (n_stimuli, width); ``all`` gives a list of n_stimuli arrays of
    shape (n_tokens, width). Rows are in the order of `ids`. The layer of ``embed`` and ``final_norm`` is ``None``;
    ``resid_pre``, negative layers and names such as ``"resid_post.12"`` are understood as well.

    An array is made each time it is asked for, and belongs to the caller.

    Attributes
    ----------
    ids : tuple of str
        Stimuli, in the order of the rows.
    selectors : tuple of str
        Labels of the selectors.
    columns : tuple of Column
        What was captured.
    card : ModelCard
        The model that answered.
    """

    def __init__(
        self,
        batches: Sequence[pa.RecordBatch],
        *,
        ids: Sequence[str],
        selectors: Sequence[str],
        columns: Sequence[Column],
        card: ModelCard,
        dtype: Dtype,
    ) -> None:
        self.ids = tuple(ids)
        self.selectors = tuple(selectors)
        self.columns = tuple(columns)
        self.card = card
        self._batches = list(batches)
        self._dtype = dtype
        names = [field.name for field in KEY_FIELDS]
        keys = pa.Table.from_batches([batch.select(names) for batch in self._batches])
        try:
            self._index = RowIndex.of(keys, self.ids, self.selectors)
        except ValueError as error:
            raise CorruptAnswerError(str(error)) from None

    def __getitem__(self, key: Key) -> Values:
        column, label = self._resolve(key)
        return self._per_stimulus(label, self._index.gather(label, self._chunks(column), column.width))

    def __iter__(self) -> Iterator[Key]:
        for column in self.columns:
            for label in self.selectors:
                yield column_key(column) if len(self.selectors) == 1 else (*column_key(column), label)

    def __len__(self) -> int:
        return len(self.columns) * len(self.selectors)

    def __repr__(self) -> str:
        return (
            f"Activations({len(self.ids)} stimuli, {len(self.columns)} columns, selectors {list(self.selectors)}, "
            f"model {self.card.model!r})"
        )

    @property
    def positions(self) -> dict[str, IntArray | list[IntArray]]:
        """Token position of every row, by selector: int32 of shape (n_stimuli,), -1 where pooled.

        For ``all``, a list of n_stimuli arrays of shape (n_tokens,).
        """
        return {label: self._tokens(label, self._index.position) for label in self.selectors}

    @property
    def token_ids(self) -> dict[str, IntArray | list[IntArray]]:
        """Token id of every row, by selector; shaped as `positions`."""
        return {label: self._tokens(label, self._index.token_id) for label in self.selectors}

    def _resolve(self, key: Key) -> tuple[Column, str]:
        site, layer, label = (key, None, None) if isinstance(key, str) else (*key, None)[:3]
        if label is None:
            if len(self.selectors) > 1:
                raise KeyError(f"name a selector, [site, layer, selector]; there are {', '.join(self.selectors)}")
            label = self.selectors[0]
        if label not in self.selectors:
            raise KeyError(f"selector {label!r} was not captured; there are {', '.join(self.selectors)}")
        return find_column(self.columns, site, layer, self.card.n_layers), label

    def _chunks(self, column: Column) -> Iterator[FloatArray]:
        for batch in self._batches:
            values = np.from_dlpack(batch.column(column.name).values)
            yield to_float32(values, self._dtype).reshape(-1, column.width)

    def _per_stimulus(self, label: str, values: FloatArray) -> Values:
        return np.split(values, self._index.selectors[label].ends) if not is_single_row(label) else values

    def _tokens(self, label: str, numbers: IntArray) -> IntArray | list[IntArray]:
        selected = self._index.selectors[label]
        ordered = numbers[selected.rows]
        return np.split(ordered, selected.ends) if not is_single_row(label) else ordered
