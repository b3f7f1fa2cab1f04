"""The truth about a real model: what an undisturbed client got, to the precision of another batch's arithmetic."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stratoscope.client import Client
from stratoscope_wire import ActivationsRequest, Capture, Stimulus
from tests.faults.truth import Row, rows_of

TOLERANCE: Final = 1e-5
"""Relative L2 between two batches of the same text in float32."""


class RecordedTruth:
    """Rows by text, selector and position.

    Parameters
    ----------
    tables
        Undisturbed answers.
    texts
        By stimulus.
    """

    def __init__(self, tables: Sequence[pa.Table], texts: Mapping[str, str]) -> None:
        self._rows = {
            (texts[row[0]], row[1], row[2]): (row[3], values) for table in tables for row, values in rows_of(table)
        }
        self._counts = Counter(key[:2] for key in self._rows)

    @classmethod
    def ask(cls, url: str, texts: Mapping[str, str], layers: list[int]) -> "RecordedTruth":
        """Fetch the last token's state of every text."""
        names = list(texts)
        tables = []
        with Client(url, timeout=120) as client:
            for start in range(0, len(names), 64):
                stimuli = [Stimulus(id=name, text=texts[name]) for name in names[start : start + 64]]
                capture = Capture(sites=["resid_post"], layers=layers, select=["last"])
                tables.append(pa.Table.from_batches(client.fetch(ActivationsRequest(stimuli=stimuli, capture=capture))))
        return cls(tables, texts)

    def n_rows(self, text: str, selectors: Sequence[str]) -> int:
        return sum(self._counts[text, selector] for selector in selectors)

    def is_true(self, text: str, row: Row, values: Mapping[str, npt.NDArray[Any]]) -> bool:
        token, due = self._rows.get((text, row[1], row[2]), (-1, {}))
        return token == row[3] and all(
            np.linalg.norm(values[name] - due[name]) <= TOLERANCE * np.linalg.norm(due[name]) for name in values
        )
