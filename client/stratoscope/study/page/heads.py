"""Attention heads: which of them hold a target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stratoscope.report.figure import LEVEL, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BEST = 8
"""Heads in the table beside the figure."""


def draw_heads(rows: pl.DataFrame, chance: float | None) -> Figure:
    """Draw layer x head of one target; a dot marks heads above chance, p corrected.

    Parameters
    ----------
    rows : polars.DataFrame
        Heads of one experiment and target.
    chance : float or None
        Where the colours begin, if known.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers, heads = sorted(rows["layer"].unique().to_list()), sorted(rows["head"].unique().to_list())
    matrix = np.full((len(layers), len(heads)), np.nan)
    strong: list[tuple[int, int]] = []
    for row in rows.iter_rows(named=True):
        at = layers.index(row["layer"]), heads.index(row["head"])
        matrix[at] = np.nan if row["score"] is None else row["score"]
        if row["p_corrected"] is not None and row["p_corrected"] <= LEVEL:
            strong.append(at)
    low = chance if chance is not None else float(np.nanmin(matrix))
    colors = colormaps["viridis"].with_extremes(bad="#d9d9d9", under="#1d0030")
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 0.24 * len(layers)), layout="constrained")
        axes = figure.add_subplot()
        look: dict[str, Any] = {"cmap": colors, "vmin": low, "vmax": max(float(np.nanmax(matrix)), low + 1e-3)}
        mesh = axes.pcolormesh(heads, np.arange(len(layers)), np.ma.masked_invalid(matrix), rasterized=True, **look)
        if strong:
            down, across = zip(*strong, strict=True)
            axes.plot([heads[at] for at in across], down, "o", ms=3.5, mfc="white", mec="black", mew=0.6)
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers], fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True))
        axes.tick_params(length=0)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        figure.colorbar(mesh, ax=axes, label="held-out score", pad=0.02, extend="min")
    return figure


def best_heads(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the heads with the greatest scores, best first."""
    return rows.filter(pl.col("score").is_finite()).sort("score", descending=True).head(N_BEST)
