"""Which rows of the curves a figure shows, and scores on one scale."""

from __future__ import annotations

import polars as pl

from stratoscope.report.figure import LEVEL

NORMAL_NAME = "(score − chance) / (1 − chance)"


def leading(table: pl.DataFrame) -> pl.DataFrame:
    """Rows of the first probe of every target and the first metric of that probe: what is drawn."""
    keys = ["experiment", "target"]
    first = table.unique(keys, keep="first", maintain_order=True).select(*keys, "probe", "metric")
    return table.join(first, on=[*keys, "probe", "metric"], how="semi", maintain_order="left")


def normalised(curves: pl.DataFrame) -> pl.DataFrame:
    """Add ``normal``, (score - chance) / (1 - chance), and ``is_above``.

    ``normal`` is 0 at chance and 1 if perfect; for R², R² itself. ``is_above`` is false where the corrected p says that
    the score is not above chance, and true where there was no test.
    """
    return curves.with_columns(
        normal=(pl.col("score") - pl.col("chance")) / (1 - pl.col("chance")),
        is_above=pl.col("p_corrected").fill_nan(None).fill_null(0.0) <= LEVEL,
    )


def layered(curves: pl.DataFrame) -> pl.DataFrame:
    """Rows of sites that have layers."""
    return curves.filter(pl.col("layer").is_not_null())


def defined(curves: pl.DataFrame) -> pl.DataFrame:
    """Rows that figures of many targets average: of layers, leading, and with a defined score."""
    return layered(leading(curves)).filter(pl.col("score").is_finite())


def sites(curves: pl.DataFrame) -> list[str]:
    """Sites that have layers, the residual stream first."""
    found = layered(curves)["site"].unique(maintain_order=True).to_list()
    return sorted(found, key=lambda site: site != "resid_post")


def variable(rows: pl.DataFrame) -> str | None:
    """Say whether an experiment goes over distances or places: the name of that column, or None."""
    return next((name for name in ("distance", "place") if name in rows.columns and rows[name].count()), None)


def mean_curves(curves: pl.DataFrame, by: str) -> pl.DataFrame:
    """Average normalised scores over targets: columns `by`, site, layer, n_layers, normal, is_above (of any target).

    A target weighs the same however many distances or places it was measured at; undefined scores are left out.
    """
    rows = layered(normalised(leading(curves))).filter(pl.col("normal").is_finite())
    place = [by, "site", "layer", "n_layers"]
    keys = list(dict.fromkeys([*place, "experiment", "target"]))
    targets = rows.group_by(keys, maintain_order=True).agg(pl.col("normal").mean(), pl.col("is_above").any())
    means = targets.group_by(place, maintain_order=True)
    return means.agg(pl.col("normal").mean(), pl.col("is_above").any()).sort("layer", maintain_order=True)
