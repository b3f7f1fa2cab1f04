"""The content of a shard before it is written: activations as they came, widened only when a page is made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stratoscope.rows import FloatArray
from stratoscope.store.scratch import Scratch
from stratoscope_wire.dtypes import Values, widen
from stratoscope_wire.request import Dtype


@dataclass(frozen=True, slots=True)
class ColumnRows:
    """The rows of one column of activations.

    Attributes
    ----------
    pieces : arrays of shape (n_rows, width)
        One after the other, each with the dtype of the wire in which its values are.
    """

    pieces: Sequence[tuple[Values, Dtype]]

    @classmethod
    def of(cls, lists: Sequence[tuple[pa.FixedSizeListArray, Dtype]]) -> "ColumnRows":
        """Take lists of values without copying them.

        Raises
        ------
        ValueError
            If they hold a null.
        """
        pieces = []
        for some, dtype in lists:
            values = some.flatten()
            if some.null_count or values.null_count:
                raise ValueError("a column of activations holds a null")
            pieces.append((np.from_dlpack(values).reshape(len(some), some.type.list_size), dtype))
        return cls(pieces)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return sum(len(values) for values, _ in self.pieces)

    @property
    def width(self) -> int:
        """Values in a row."""
        return int(self.pieces[0][0].shape[1])

    def part(self, first: int, end: int, scratch: Scratch) -> FloatArray:
        """Return rows as float32, of shape (end - first, width).

        They stand in the scratch's memory, unless they are float32 and of one piece already.
        """
        found = []
        start = 0
        for values, dtype in self.pieces:
            some = values[max(first - start, 0) : max(end - start, 0)]
            start += len(values)
            if len(some):
                found.append((some, dtype))
        if len(found) == 1 and found[0][1] == "float32":
            return np.asarray(found[0][0], np.float32)
        rows = scratch.take(4 * (end - first) * self.width).view(np.float32).reshape(end - first, self.width)
        done = 0
        for some, dtype in found:
            widen(some, dtype, rows[done : done + len(some)])
            done += len(some)
        return rows


@dataclass(frozen=True, slots=True)
class Content:
    """What a shard is to hold.

    Attributes
    ----------
    schema
        Of the shard, with its metadata.
    keys
        The key columns.
    columns
        The activations, by name, in the schema's order.
    """

    schema: pa.Schema
    keys: pa.Table
    columns: Mapping[str, ColumnRows]

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and of all values as float32."""
        return int(self.keys.nbytes) + sum(4 * rows.n_rows * rows.width for rows in self.columns.values())
