"""The buffer that one batch's rows are written to, and the checks on what was written."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

import torch

from stratoscope_server.engines.protocol import EngineError
from stratoscope_server.engines.torch.batch import Batch
from stratoscope_wire import Column
from stratoscope_wire.dtypes import Values
from stratoscope_wire.request import Dtype

_TYPES: Final[dict[Dtype, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class EveryColumnWritten(BaseException):
    """Nothing is left to read: ends the forward pass. Not an error, and nobody's but the runner's to catch."""


class Recorder:
    """Takes the states of each column once, keeps the rows asked for, and gives them out in the wire's type.

    Rows are copied at once, since the model may overwrite its states in place. All columns lie one after another in
    one buffer, so that they leave the device in one copy.

    Parameters
    ----------
    batch
        What runs.
    columns
        What is read.
    dtype
        Type of the values given out.
    device
        Where the buffer is; states may come from others.
    """

    def __init__(self, batch: Batch, columns: Sequence[Column], dtype: Dtype, device: torch.device) -> None:
        self._batch = batch
        self._columns = columns
        self._dtype = dtype
        self._rows = {device: batch.rows.to(device)}
        n_values = len(batch.owners) * sum(column.width for column in columns)
        self._buffer = torch.empty(n_values, dtype=_TYPES[dtype], device=device)
        self._views = dict(zip((column.name for column in columns), self._split(self._buffer), strict=True))
        self._finite = torch.zeros(2, len(columns), dtype=torch.bool, device=device)
        self._pending = {column.name: index for index, column in enumerate(columns)}

    def write(self, column: str, states: torch.Tensor) -> None:
        """Keep a column's rows.

        Parameters
        ----------
        column
            Its name.
        states : tensor of shape (n_prompts, n_tokens, width)

        Raises
        ------
        EngineError
            If the column was written before, or its states have another shape than they should.
        EveryColumnWritten
            If no column is pending after this one.
        """
        index = self._pending.pop(column, None)
        if index is None:
            raise EngineError("column_twice", f"column {column!r} was computed twice in one pass")
        expected = (*self._batch.token_ids.shape, self._columns[index].width)
        if states.shape != expected:
            raise EngineError("bad_shape", f"column {column!r} has shape {tuple(states.shape)} instead of {expected}")
        if states.device not in self._rows:
            self._rows[states.device] = self._batch.rows.to(states.device)
        rows = self._rows[states.device].gather(states)
        view = self._views[column].copy_(rows)
        self._finite[0, index] = _all_finite(rows)
        # A wider type holds whatever the model computes.
        self._finite[1, index] = self._finite[0, index] if _holds(view.dtype, rows.dtype) else _all_finite(view)
        if not self._pending:
            raise EveryColumnWritten

    def finish(self) -> list[Values]:
        """Return one array of shape (n_rows, width) per column, bfloat16 as its bits in uint16.

        Raises
        ------
        EngineError
            If a column was not written, or holds a value that is not finite, here or in the wire's type.
        """
        if self._pending:
            raise EngineError("column_missing", f"the model never computed {', '.join(self._pending)}")
        columns = self._split(self._buffer.cpu())
        finite, fits = self._finite.cpu().all(dim=1).tolist()
        if not (finite and fits):
            self._refuse(columns, self._finite.cpu())
        return [(rows.view(torch.uint16) if self._dtype == "bfloat16" else rows).numpy() for rows in columns]

    def _split(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        n_rows = len(self._batch.owners)
        ends = accumulate(n_rows * column.width for column in self._columns)
        sizes = [(end, column.width) for end, column in zip(ends, self._columns, strict=True)]
        return [buffer[end - n_rows * width : end].view(n_rows, width) for end, width in sizes]

    def _refuse(self, columns: Sequence[torch.Tensor], finite: torch.Tensor) -> None:
        """Name the first bad value; what is not finite in the model comes before what the wire's type cannot hold."""
        kind = 0 if not finite[0].all() else 1
        index = int((~finite[kind]).nonzero()[0])
        row = int((~columns[index].isfinite().all(dim=1)).nonzero()[0])
        where = f"column {self._columns[index].name!r} of stimulus {self._batch.owners[row]!r}"
        if kind == 0:
            raise EngineError("non_finite_activation", f"{where} has a value that is infinite or not a number")
        raise EngineError(
            f"{self._dtype}_overflow",
            f"{where} has a value beyond {torch.finfo(_TYPES[self._dtype]).max:g}, the largest of {self._dtype}; "
            "ask for dtype float32",
            status=422,
        )


def _all_finite(values: torch.Tensor) -> torch.Tensor:
    """Say whether no value is infinite or not a number; the extremes of what holds one of those are not finite."""
    return torch.stack(values.aminmax()).isfinite().all()


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    return wide in (narrow, torch.float32)
