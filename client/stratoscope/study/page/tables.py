"""The tables of a page as files beside it: every number that it shows, and more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stratoscope.store.durable import replace_file


def write_tables(folder: Path, tables: Mapping[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """Write each table under ``tables/`` as Parquet and CSV.

    Both read back equal, CSV with the schema of the Parquet file: undefined scores are ``NaN``, missing values empty.

    Returns
    -------
    list of dict
        ``name, height, parquet, csv`` of each, the last two as links; a table without columns is left out.
    """
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    return [_write(folder, name, table) for name, table in tables.items() if table.width]


def _write(folder: Path, name: str, table: pl.DataFrame) -> dict[str, Any]:
    links = {extension: f"tables/{name}.{extension}" for extension in ("parquet", "csv")}
    replace_file(folder / links["parquet"], table.write_parquet)
    replace_file(folder / links["csv"], table.write_csv)
    return {"name": name, "height": table.height, **links}
