"""Layer curves and peaks of a study's fits, as two tidy tables."""

from __future__ import annotations

from typing import Any

import polars as pl

from stratoscope.probes import SweepResult, significance, summarise
from stratoscope.probes.peaks import PEAKS_SCHEMA
from stratoscope.study.config import Statistics
from stratoscope.study.fits import RECORD, Fit, load_fit
from stratoscope.study.workspace import Workspace

TESTED = ("p", "p_corrected")
AT = ["metric", "site", "layer"]


def fit_curves(
    fit: Fit, workspace: Workspace, statistics: Statistics, n_layers: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return curves and peaks of one fit, kept beside its results.

    Both are those of `stratoscope.probes.summarise`, with where they belong in front, ``p`` and ``p_corrected`` of the
    probe that was permuted (``test_probe``), and ``surface_score``.
    """
    folder = fit.folder(workspace)
    kept = {name: folder / f"{name}.parquet" for name in ("curves", "peaks")}
    newest = max(path.stat().st_mtime_ns for path in folder.glob(f"*/{RECORD}"))
    if not all(path.exists() and path.stat().st_mtime_ns > newest for path in kept.values()):
        for name, frame in zip(kept, _summarised(fit, workspace, statistics, n_layers), strict=True):
            frame.write_parquet(kept[name])
    curves, peaks = (pl.read_parquet(path) for path in kept.values())
    return _placed(curves, fit), _placed(peaks, fit)


def _summarised(
    fit: Fit, workspace: Workspace, statistics: Statistics, n_layers: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    main, test = load_fit(fit, "main", workspace), load_fit(fit, "test", workspace)
    assert main is not None
    summary = summarise(main, n_layers=n_layers, n_resamples=statistics.resamples, seed=statistics.seed)
    curves, peaks = summary.curves, summary.peaks
    if test is not None:
        tested = significance(test).select(*AT, *TESTED)
        curves = curves.drop(TESTED).join(tested, on=AT, how="left", nulls_equal=True, maintain_order="left")
        at_peak = curves.select("metric", "site", pl.col("layer").alias("peak_layer"), *TESTED)
        peaks = peaks.drop(TESTED).join(at_peak, on=["metric", "site", "peak_layer"], how="left", maintain_order="left")
    permuted = test if test is not None else main
    probe = permuted.provenance["probe"] if permuted.provenance["n_permutations"] else None
    surface = load_fit(fit, "surface", workspace)
    curves = curves.with_columns(test_probe=pl.lit(probe, pl.String)).join(
        _surface(surface), on="metric", how="left", maintain_order="left"
    )
    order = [name for name in summary.curves.columns if name not in TESTED]
    return curves.select(*order, *TESTED, "test_probe", "surface_score"), peaks.select(list(PEAKS_SCHEMA))


def _surface(result: SweepResult | None) -> pl.DataFrame:
    schema: dict[str, Any] = {"metric": pl.String, "surface_score": pl.Float64}
    if result is None:
        return pl.DataFrame(schema=schema)
    outer = result.scores.filter(level="outer", control="none")
    return outer.group_by("metric", maintain_order=True).agg(surface_score=pl.col("score").mean())


def _placed(frame: pl.DataFrame, fit: Fit) -> pl.DataFrame:
    place = {
        "experiment": pl.lit(fit.experiment.name), "level": pl.lit(fit.experiment.level),
        "distance": pl.lit(fit.distance, pl.Int32), "place": pl.lit(fit.target.place, pl.Int32),
        "part": pl.lit(None if fit.part is None else str(fit.part), pl.String),
        "is_control": pl.lit(fit.target.control),
    }  # fmt: skip
    return frame.select(*(value.alias(name) for name, value in place.items()), pl.all())
