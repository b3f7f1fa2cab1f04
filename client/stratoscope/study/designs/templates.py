"""Texts from templates: one row of a table, one text."""

from __future__ import annotations

import string
from collections.abc import Iterable

import polars as pl

from stratoscope.errors import StimulusError


def filled(table: pl.DataFrame, *, template: str) -> pl.DataFrame:
    """Fill a template with every row of a table.

    Parameters
    ----------
    table : polars.DataFrame
    template : str
        Column names in braces: ``"{article} {object}"``. Nothing but names: no attributes, indices or formats.

    Returns
    -------
    polars.DataFrame
        ``text``, then the columns of the table.

    Raises
    ------
    StimulusError
        If the template names no column, one that the table lacks, or one with an empty cell; or two texts are equal.
    """
    names = template_names(template)
    check_columns(table, names, f"template {template!r}")
    texts = [template.format_map(row) for row in table.iter_rows(named=True)]
    for name in names:
        if table[name].null_count():
            row = table[name].is_null().arg_true()[0] + 1
            raise StimulusError(
                f"template {template!r}: column {name!r} is empty in row {row}; fill it or drop the row"
            )
    twice = pl.Series(texts).filter(pl.Series(texts).is_duplicated())
    if len(twice):
        raise StimulusError(
            f"template {template!r} gives the text {twice[0]!r} more than once; name what differs in it"
        )
    return table.drop("text", strict=False).select(pl.Series("text", texts, dtype=pl.String), pl.all())


def template_names(template: str) -> list[str]:
    """Return the names in a template, each once.

    Raises
    ------
    StimulusError
        If there is none, or one is more than a name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise StimulusError(f"template {template!r}: {error}") from None
    names = list(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
    plain = all(not (spec or conversion) for _, _, spec, conversion in parts)
    if not names or not plain or not all(name.isidentifier() for name in names):
        raise StimulusError(f"template {template!r}: it must hold names of columns in braces, such as {{object}}")
    return names


def check_columns(table: pl.DataFrame, names: Iterable[str], what: str) -> None:
    """Refuse a table that lacks a column.

    Raises
    ------
    StimulusError
        Naming what needs the column, and the columns there are.
    """
    for name in names:
        if name not in table.columns:
            raise StimulusError(f"{what}: the table has no column {name!r}; it has {', '.join(table.columns)}")
