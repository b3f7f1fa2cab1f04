"""Reading stimulus files: CSV, TSV, JSONL and Parquet."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from stratoscope.errors import StimulusError
from stratoscope.stimuli.fields import typed_cells
from stratoscope.stimuli.spans import PREFIX
from stratoscope.stimuli.table import StimulusTable

Table = tuple[list[dict[str, Any]], list[str]]
"""Rows, and where each was found."""

MARKS_OF_OTHER_ENCODINGS: Final = (b"\xff\xfe", b"\xfe\xff")


def load_stimuli(path: str | Path) -> StimulusTable:
    """Load and check a stimulus file; its suffix says what it is: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.

    The column ``text`` holds the texts (JSONL and Parquet may have ``token_ids`` or ``messages`` instead). ``id`` is
    optional: without it a stimulus is named by its content, so that the name outlives reordering. A column
    ``span.NAME`` holds words that occur in the text exactly once, or a range of characters such as ``2:8``; an empty
    cell means that the text has no such span. Every other column is a label or group.

    Raises
    ------
    StimulusError
        Naming file, row and column.
    """
    path = Path(path)
    return StimulusTable.from_rows(*read_rows(path), path.name)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read the rows of a table, whatever its columns; numbers and booleans of text files are recognised.

    Returns
    -------
    rows, places
        One mapping of column names to cells per row, all with the same names; and where each was found.

    Raises
    ------
    StimulusError
        Naming file, row and column.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise StimulusError(f"{path}: unknown suffix {path.suffix!r}; stimulus files are {', '.join(READERS)}")
    if not path.is_file():
        raise StimulusError(f"{path}: there is no such file")
    return reader(path)


def _read_csv(path: Path) -> Table:
    return _read_cells(path, ",")


def _read_tsv(path: Path) -> Table:
    return _read_cells(path, "\t")


def _read_cells(path: Path, delimiter: str) -> Table:
    # Not polars: it fills short rows with nulls and renames duplicate columns, both silently.
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str | None]] = []
    places: list[str] = []
    try:
        names = next(reader, [])
        _check_names(names, path)
        for cells in reader:
            place = f"row {len(rows) + 1} (line {reader.line_num})"
            if not cells:
                continue
            if len(cells) != len(names):
                raise StimulusError(f"{path.name}, {place}: {len(cells)} cells for {len(names)} columns; quote texts")
            rows.append([cell or None for cell in cells])
            places.append(place)
    except csv.Error as error:
        fix = "; use JSONL or Parquet for very long texts" if "limit" in str(error) else ""
        raise StimulusError(f"{path.name}, line {reader.line_num}: {error}{fix}") from None
    columns = {name: _typed(name, [row[index] for row in rows]) for index, name in enumerate(names)}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)], places


def _typed(name: str, cells: list[str | None]) -> list[Any]:
    return cells if name in ("id", "text") or name.startswith(PREFIX) else typed_cells(cells)


def _read_jsonl(path: Path) -> Table:
    records: list[dict[str, Any]] = []
    places: list[str] = []
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if line.strip():
            places.append(f"row {len(places) + 1} (line {number})")
            records.append(_record(line, f"{path.name}, {places[-1]}"))
    names = list(dict.fromkeys(name for record in records for name in record))
    if names:
        _check_names(names, path)
    return [{name: r.get(name) for name in names} for r in records], places


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise StimulusError(f"{place}: {error}") from None
    if not isinstance(record, dict):
        raise StimulusError(f'{place}: expected an object such as {{"text": "..."}}')
    return record


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError(f"a name occurs twice in {[name for name, _ in pairs]}")
    return record


def _read_parquet(path: Path) -> Table:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StimulusError(f"{path.name} is not a readable Parquet file: {error}") from None
    rows = frame.to_dicts()
    return rows, [f"row {number}" for number in range(1, len(rows) + 1)]


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(MARKS_OF_OTHER_ENCODINGS):
        raise StimulusError(f"{path.name} is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StimulusError(
            f"{path.name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _check_names(names: list[str], path: Path) -> None:
    if not any(names):
        raise StimulusError(f"{path.name} is empty; its first line must name the columns, one of them 'text'")
    for name in names:
        if not name or name != name.strip():
            raise StimulusError(f"{path.name}: the column name {name!r} is empty or has blanks around it")
        if names.count(name) > 1:
            raise StimulusError(f"{path.name}: the column {name!r} occurs more than once")


READERS: Final[Mapping[str, Callable[[Path], Table]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
