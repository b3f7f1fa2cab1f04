"""The page that compares the study of several models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from stratoscope.report.figure import METRIC_NAMES
from stratoscope.store.durable import replace_file
from stratoscope.study.page.book import Comparison
from stratoscope.study.page.curves import draw_models
from stratoscope.study.page.findings import tally
from stratoscope.study.page.gallery import Gallery, Picture
from stratoscope.study.page.page import resamples, study_environment
from stratoscope.study.page.rows import NORMAL_NAME, defined, layered, leading, mean_curves, sites, variable
from stratoscope.study.page.tables import write_tables

_LEVEL = (
    "Mean over the targets of the level “{name}” of (score − chance) / (1 − chance), {site}: 0 at chance, 1 if "
    "perfect; no interval. Above against absolute layer, below against relative depth."
)
_TARGET = (
    "Held-out score at every layer, {site}, with 95% bootstrap intervals over groups{where}; hollow: p above 0.05, "
    "corrected. Above against absolute layer, below against relative depth."
)


class Across(NamedTuple):
    """How a table across models is told; `columns` are (name, heading)."""

    table: str
    title: str
    about: str
    columns: tuple[tuple[str, str], ...]
    digits: int = 3


_MODELS = (("experiment", "experiment"), ("site", "site"), ("model_a", "from model"), ("model_b", "to model"))
_WHERE = (("model", "model"), ("experiment", "experiment"), ("target", "target"), ("site", "site"))
ACROSS = (
    Across(
        "depth",
        "Where the peaks lie, between models",
        "How much later an experiment peaks in the second model, in layers and as a share of the "
        "model's depth, with 95% "
        "intervals over groups, resampled together for both. An interval that includes 0 leaves it open.",
        (
            *_MODELS,
            *(("layers", "layers"), ("layers_low", "low"), ("layers_high", "high")),
            *(("depth", "depth"), ("depth_low", "low"), ("depth_high", "high")),
        ),
        digits=2,
    ),
    Across(
        "rise_fall_rise",
        "Rise, fall and rise again, model by model",
        "How far two peaks lie above the trough between them, windows found on one half of the "
        "groups and tested on the "
        "other. Found only if both are above 0.",
        (
            *_WHERE,
            *(("peak1", "peak"), ("trough", "trough"), ("peak2", "peak"), ("fall", "fall"), ("fall_p", "p")),
            *(("rise", "rise"), ("rise_p", "p"), ("verdict", "verdict")),
        ),
    ),
    Across(
        "coordination",
        "Turns between neighbouring layers, model by model",
        "Reliability of the detrended curves between halves of the groups, and their lag-1 correlation across halves, "
        "against curves whose layers are exchanged near by.",
        (
            *_WHERE,
            *(
                ("reliability", "reliability"),
                ("reliability_p", "p"),
                ("lag1", "lag-1"),
                ("lag1_null_low", "null from"),
            ),
            *(("lag1_null_high", "to"), ("lag1_p", "p"), ("verdict", "verdict")),
        ),
    ),
)


class Pair(NamedTuple):
    """One target in all models: its figure, and the rows of its peak table."""

    target: str
    metric: str
    picture: Picture
    peaks: list[dict[str, Any]]


def write_comparison(folder: Path, comparison: Comparison) -> Path:
    """Write ``comparison.html``, ``figures/*.svg|png`` and ``tables/*.parquet|csv`` under `folder`.

    Parameters
    ----------
    folder : Path
        Made if missing.
    comparison : Comparison

    Returns
    -------
    Path
        Of ``comparison.html``.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    links = write_tables(folder, comparison.tables)
    gallery = Gallery(folder)
    names = [str(one["name"]) for one in comparison.models]
    curves = comparison.table("curves")
    baseline = comparison.table("baseline").to_dicts()
    html = (
        study_environment()
        .get_template("comparison.html")
        .render(
            comparison=comparison,
            names=names,
            claims=_claims(comparison.table("claims")),
            baseline=baseline,
            verdicts={name: tally([row for row in baseline if row["model"] == name]) for name in names},
            across=[(kind, table.to_dicts()) for kind in ACROSS if (table := comparison.table(kind.table)).height],
            levels=_levels(curves, names, gallery),
            experiments=_experiments(curves, comparison.table("peaks"), names, gallery),
            links=links,
            n_resamples=resamples(comparison),
        )
    )
    path = folder / "comparison.html"
    replace_file(path, lambda file: file.write(html.encode()))
    return path


def _claims(table: pl.DataFrame) -> list[dict[str, Any]]:
    """Claims in order, each with its row of every model under ``models``."""
    claims: dict[Any, dict[str, Any]] = {}
    for row in table.to_dicts():
        claims.setdefault(row["number"], {**row, "models": {}})["models"][row["model"]] = row
    return [claims[number] for number in sorted(claims)]


def _levels(curves: pl.DataFrame, names: list[str], gallery: Gallery) -> list[tuple[str, Picture]]:
    """Draw the mean curve of every level, one line per model."""
    if curves.is_empty() or defined(curves).is_empty():
        return []
    site = sites(defined(curves))[0]
    parts = [
        mean_curves(curves.filter(pl.col("model") == name), "level").with_columns(model=pl.lit(name)) for name in names
    ]
    means = pl.concat(parts).filter(pl.col("site") == site).with_columns(chance=pl.lit(0.0))
    drawn = []
    for level in curves["level"].unique(maintain_order=True).to_list():
        rows = means.filter(pl.col("level") == level)
        if rows.height:
            figure = draw_models(rows, names, value="normal", name=NORMAL_NAME)
            caption = _LEVEL.format(name=level, site=site)
            alt = f"Mean curves of the level {level}, one per model, by layer and by relative depth"
            drawn.append((level, gallery.add(figure, "level", level, alt=alt, caption=caption)))
    return drawn


def _experiments(
    curves: pl.DataFrame, peaks: pl.DataFrame, names: list[str], gallery: Gallery
) -> list[tuple[str, list[Pair]]]:
    """Draw every target of every experiment, under its first probe and metric."""
    if curves.is_empty() or defined(curves).is_empty():
        return []
    site = sites(defined(curves))[0]
    found: dict[str, list[Pair]] = {}
    for rows in leading(layered(curves)).partition_by("experiment", "target", maintain_order=True):
        at, where = _nearest(rows)
        main = rows.filter(pl.col("site") == site, at)
        if main["score"].is_finite().any():
            found.setdefault(rows["experiment"][0], []).append(_pair(main, peaks, names, gallery, where))
    return list(found.items())


def _nearest(rows: pl.DataFrame) -> tuple[pl.Expr, str]:
    """Choose the smallest distance, or the first place, that all models share; and say so."""
    by = variable(rows)
    if by is None:
        return pl.lit(value=True), ""
    shared = rows.group_by(by).agg(n=pl.col("model").n_unique()).filter(n=rows["model"].n_unique())
    nearest = (shared if shared.height else rows)[by].drop_nulls().min()
    return pl.col(by) == nearest, f", at {by} {nearest!s} alone"


def _pair(main: pl.DataFrame, peaks: pl.DataFrame, names: list[str], gallery: Gallery, where: str) -> Pair:
    experiment, target, site, metric = main.select("experiment", "target", "site", "metric").row(0)
    figure = draw_models(main, names, value="score", name=METRIC_NAMES.get(metric, metric))
    alt = f"Curves of {target}, one per model, by layer and by relative depth"
    caption = _TARGET.format(site=site, where=where)
    picture = gallery.add(figure, "models", experiment, target, alt=alt, caption=caption)
    on = ["model", "experiment", "target", "probe", "metric", "site", "distance", "place"]
    keys = main.select(on).unique()
    rows = [] if peaks.is_empty() else peaks.join(keys, on=on, how="semi", nulls_equal=True).to_dicts()
    return Pair(target, metric, picture, rows)
