"""The result file: one row for every figure and repetition."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from throughput.figure import Figure


def ratios_to(figure: Figure, limit: Figure) -> list[float | None]:
    """Return how large a part of its limit each repetition is; more is better whatever the unit.

    Of seconds the limit's are divided by the figure's, of anything else the figure's by the limit's.
    """
    if len(figure.values) != len(limit.values):
        return [None] * len(figure.values)
    pairs = zip(figure.values, limit.values, strict=True)
    return [theirs / mine if figure.unit == "s" else mine / theirs for mine, theirs in pairs]


def table(figures: Sequence[Figure], facts: Mapping[str, str]) -> pl.DataFrame:
    """Return the rows of figures.

    Raises
    ------
    KeyError
        If a figure's limit was not measured.
    """
    by_name = {figure.name: figure for figure in figures}
    sizes = sorted({name for figure in figures for name in figure.sizes})
    rows = [{**row, **facts} for figure in figures for row in _rows(figure, by_name, sizes)]
    return pl.DataFrame(rows, infer_schema_length=None)


def _rows(figure: Figure, by_name: Mapping[str, Figure], sizes: Sequence[str]) -> list[dict[str, Any]]:
    of_limit = ratios_to(figure, by_name[figure.limit]) if figure.limit else [None] * len(figure.values)
    same = {name: getattr(figure, name) for name in ("stage", "subject", "measure", "unit", "limit")}
    own = {name: figure.sizes.get(name) for name in sizes}
    return [
        {**same, "repetition": index, "value": value, "of_limit": part, **own}
        for index, (value, part) in enumerate(zip(figure.values, of_limit, strict=True))
    ]
