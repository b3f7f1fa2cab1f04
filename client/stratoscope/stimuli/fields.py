"""Label and group columns: from cells to typed polars columns."""

import re
from collections.abc import Sequence
from typing import Final

import polars as pl

from stratoscope_wire.schema import KEY_FIELDS
from stratoscope_wire.sites import parse_column

RESERVED: Final = frozenset({"id", "text", *(field.name for field in KEY_FIELDS)})
"""Names that mean something else in a run or an export."""

INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,17}")
DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
BOOLEANS: Final = {"true": True, "false": False}

Scalar = str | int | float | bool | None


def check_name(name: str) -> None:
    """Refuse a field name that would be mistaken for something else.

    Raises
    ------
    ValueError
        If it would.
    """
    if name in RESERVED:
        raise ValueError(f"the name {name!r} is taken; rename the column")
    try:
        parse_column(name)
    except ValueError:
        return
    raise ValueError(f"the name {name!r} is that of a column of activations; rename the column")


def typed_cells(cells: Sequence[str | None]) -> list[Scalar]:
    """Read the cells of a text file's column as integers, decimals or booleans where all of them are such.

    Anything else stays text, ``007`` included: it would not be the same label as ``7``.
    """
    present = [cell for cell in cells if cell is not None]
    if present and all(cell.lower() in BOOLEANS for cell in present):
        return [None if cell is None else BOOLEANS[cell.lower()] for cell in cells]
    if present and all(INTEGER.fullmatch(cell) for cell in present):
        return [None if cell is None else int(cell) for cell in cells]
    if present and all(DECIMAL.fullmatch(cell) for cell in present):
        return [None if cell is None else float(cell) for cell in cells]
    return list(cells)


def field_series(name: str, values: Sequence[object]) -> pl.Series:
    """Build one field's column.

    Raises
    ------
    ValueError
        If values are nested or of several types.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values])  # type: ignore[arg-type]
    if kinds - {str, int, float, bool}:
        raise ValueError(f"values of type {_names(kinds)} cannot be labels; use text, numbers or booleans")
    if len(kinds) > 1:
        raise ValueError(f"values are of several types ({_names(kinds)}); use one")
    return pl.Series(name, list(values), dtype=None if kinds else pl.String)


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))
