"""Exports: labels and chosen activations of a run as one file for other programs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stratoscope.captures import Layers
from stratoscope.columns import find_column
from stratoscope.errors import ExportError
from stratoscope.rows import FloatArray
from stratoscope.store.durable import replace_file
from stratoscope.store.run import Run
from stratoscope_wire import Column, capture_columns
from stratoscope_wire.selectors import is_single_row

LARGEST_BYTES: Final = 8 << 30


def export(
    run: Run,
    out: str | Path,
    *,
    sites: Sequence[str] | None = None,
    layers: Layers = "all",
    selector: str | None = None,
) -> Path:
    """Export a run; the suffix of `out` says how. The file is replaced in one step, or left as it was.

    - ``.parquet``: one row per stimulus and, for a selector such as ``all``, token: id, text, labels, ``position``,
      ``token_id``, then the columns of activations.
    - ``.npz``: the same, one array per column; a missing number is NaN, a missing text is empty. No pickle in it.
    - ``.csv``: the table of stimuli only.

    The chosen columns are held in memory.

    Parameters
    ----------
    sites
        Sites to export; by default all of the run.
    layers
        ``"all"`` that the run has of these sites, a list, or a slice.
    selector
        Label of the selector; may be left out if there is only one.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ExportError
        If the suffix is unknown, a column is not in the run, or the export would not fit in memory.
    RunIncompleteError
        If the run has no activations yet for some stimuli and was not opened with ``allow_incomplete=True``.
    """
    out = Path(out)
    if out.suffix not in WRITERS:
        raise ExportError(f"{out}: unknown suffix {out.suffix!r}; exports are {', '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise ExportError(f"{out}: there is no folder {out.parent}")
    WRITERS[out.suffix](run, out, _chosen(run, sites, layers), selector)
    return out


def _chosen(run: Run, sites: Sequence[str] | None, layers: Layers) -> list[Column]:
    if sites is None and layers == "all":
        return list(run.columns)
    try:
        if layers == "all":
            assert sites is not None
            kept = [column for column in run.columns if column.site in sites]
            absent = set(sites) - {column.site for column in kept}
            if absent:
                raise ExportError(f"the run has no site {', '.join(sorted(absent))}")
            return kept
        named = sites or sorted({column.site for column in run.columns})
        chosen = layers if isinstance(layers, str) else list(layers)
        wanted = capture_columns(list(named), chosen, run.card)
        return [find_column(run.columns, column.site, column.layer, run.card.n_layers) for column in wanted]
    except (ValueError, KeyError) as error:
        raise ExportError(str(error.args[0])) from None


def _write_parquet(run: Run, out: Path, columns: Sequence[Column], selector: str | None) -> None:
    frame, arrays = _gathered(run, columns, selector)
    table = frame.to_arrow()
    for name, values in arrays.items():
        flat = pa.array(values.reshape(-1))
        kind = pa.list_(pa.field("item", pa.float32(), nullable=False), values.shape[1])
        table = table.append_column(
            pa.field(name, kind, nullable=False), pa.FixedSizeListArray.from_arrays(flat, type=kind)
        )
    facts = {"stratoscope.fingerprint": run.card.fingerprint, "stratoscope.model": run.card.model}
    table = table.replace_schema_metadata(facts)
    split = [f"{name}.list.element" for name in arrays]
    replace_file(
        out,
        lambda file: pq.write_table(
            table, file, compression="zstd", compression_level=1, use_dictionary=False, use_byte_stream_split=split
        ),
    )


def _write_npz(run: Run, out: Path, columns: Sequence[Column], selector: str | None) -> None:
    frame, arrays = _gathered(run, columns, selector)
    content: dict[str, npt.NDArray[Any]] = {series.name: _plain_array(series) for series in frame}
    replace_file(out, lambda file: np.savez(file, allow_pickle=False, **content, **arrays))


def _write_csv(run: Run, out: Path, columns: Sequence[Column], selector: str | None) -> None:
    del columns, selector
    frame = run.stimuli()

    def write(file: IO[bytes]) -> None:
        frame.write_csv(file)

    replace_file(out, write)


def _gathered(run: Run, columns: Sequence[Column], selector: str | None) -> tuple[pl.DataFrame, dict[str, FloatArray]]:
    """Return the labels with one row per row of activations, and the activations by column name."""
    frame = run.stimuli()
    counts = run.counts(selector)
    n_bytes = int(counts.sum()) * 4 * sum(column.width for column in columns)
    if n_bytes > LARGEST_BYTES:
        raise ExportError(
            f"the export would hold {n_bytes / 2**30:.1f} GiB, at most {LARGEST_BYTES / 2**30:.0f} GiB are held in "
            "memory; choose fewer sites or layers, or read the run's shards"
        )
    rows = np.repeat(np.arange(len(counts)), counts)
    frame = frame[rows].with_columns(
        pl.Series("position", run.positions(selector)), pl.Series("token_id", run.token_ids(selector))
    )
    return frame, {column.name: _rows(run, column, selector) for column in columns}


def _rows(run: Run, column: Column, selector: str | None) -> FloatArray:
    label = run.selectors[0] if selector is None else selector
    if not is_single_row(label):
        return np.concatenate(run.tokens(label)[column.site, column.layer])
    return run.activations(label)[column.site, column.layer]


def _plain_array(series: pl.Series) -> npt.NDArray[Any]:
    if series.dtype == pl.String:
        return np.array(series.fill_null("").to_list(), dtype=np.str_)
    return series.to_numpy() if not series.null_count() else series.cast(pl.Float64).to_numpy()


WRITERS: Final[Mapping[str, Callable[[Run, Path, Sequence[Column], str | None], None]]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}
