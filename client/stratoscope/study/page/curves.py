"""Curves of one target at several distances or places, and of several models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stratoscope.report.figure import LEVEL, METRIC_NAMES, STYLE, add_depth, label_layers
from stratoscope.study.page.heatmaps import VARIABLE_NAMES, name_site
from stratoscope.study.page.labels import plain, styles
from stratoscope.study.page.rows import layered, sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_SPAN = 0.3
"""Of a scale of scores."""

_MARKERS = "o^sDvPX<>p"


def draw_varied_curves(rows: pl.DataFrame, by: str) -> Figure:
    """Draw score against layer, one line per distance or place, one panel per site.

    Parameters
    ----------
    rows : polars.DataFrame
        Curves of one target, probe and metric.
    by : "distance" or "place"

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    rows = layered(rows).filter(pl.col(by).is_not_null())
    values, names, n_layers = sorted(rows[by].unique().to_list()), sites(rows), int(rows["n_layers"][0])
    colors = colormaps["viridis"](np.linspace(0, 0.85, len(values)))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 2.2 * len(names)), layout="constrained")
        grid = figure.subplots(len(names), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for axes, site in zip(grid, names, strict=True):
            for i, (value, color) in enumerate(zip(values, colors, strict=True)):
                part = rows.filter(pl.col("site") == site, pl.col(by) == value).sort("layer")
                style: dict[str, Any] = {"color": color, "marker": _MARKERS[i % len(_MARKERS)], "label": str(value)}
                _draw_line(axes, part, "layer", style)
            axes.axhline(rows["chance"][0], color="#555555", linewidth=0.9, linestyle=":", label="chance")
            axes.set_ylabel(METRIC_NAMES.get(rows["metric"][0], plain(rows["metric"][0])))
            name_site(axes, site)
            label_layers(axes, n_layers)
            axes.set_xlabel("" if axes is not grid[-1] else axes.get_xlabel())
        widen(grid[0])
        add_depth(grid[0], n_layers)
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=8, handlelength=2, title=VARIABLE_NAMES[by])
    return figure


def draw_models(rows: pl.DataFrame, models: Sequence[str], *, value: str, name: str) -> Figure:
    """Draw one curve per model, of one site: against absolute layer above, against relative depth below.

    Parameters
    ----------
    rows : polars.DataFrame
        ``model, layer, n_layers``, `value`, ``chance`` and, where there are, ``low, high, p_corrected, text_score``.
    models : sequence of str
        All models of the comparison, so that each has one colour on the page.
    value : str
        Column to draw.
    name : str
        Of the vertical axis.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = layered(rows).with_columns(
        depth=pl.col("layer") / pl.max_horizontal(pl.col("n_layers") - 1, 1), score=pl.col(value)
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        grid = figure.subplots(2, 1, sharey=True)
        for axes, across in zip(grid, ("layer", "depth"), strict=True):
            axes.axhline(rows["chance"][0], color="#555555", linewidth=0.9, linestyle=":", label="chance")
            if "text_score" in rows.columns and rows["text_score"][0] is not None:
                axes.axhline(rows["text_score"][0], color="#222222", lw=1.1, ls=(0, (5, 2)), label="words alone")
            for model, (color, marker) in styles(models).items():
                part = rows.filter(pl.col("model") == model).sort("layer")
                if part.height:
                    _draw_line(axes, part, across, {"color": color, "marker": marker, "label": plain(model)})
            axes.set_ylabel(name)
            axes.spines[["right", "top"]].set_visible(False)
            axes.grid(axis="y", color="#000000", alpha=0.07, linewidth=0.6)
        widen(grid[0])
        grid[0].set_xlabel("layer (decoder block, from 0)")
        grid[1].set_xlabel("relative depth, layer / (number of layers − 1)")
        handles = grid[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4, handlelength=2.4)
    return figure


def _draw_line(axes: Axes, part: pl.DataFrame, across: str, style: dict[str, Any]) -> None:
    x = part[across].to_numpy()
    if "low" in part.columns:
        low, high = part["low"].to_numpy(), part["high"].to_numpy()
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
    size = 3.4 if part.height <= 40 else 2.4
    axes.plot(x, part["score"].to_numpy(), markersize=size, linewidth=1.4, **style)
    if "p_corrected" in part.columns:
        weak = part.filter(pl.col("p_corrected") > LEVEL)
        style = {**style, "label": "_", "markerfacecolor": "white", "linestyle": "none"}
        axes.plot(weak[across].to_numpy(), weak["score"].to_numpy(), markersize=size, zorder=4, **style)


def widen(axes: Axes) -> None:
    """Make room around flat curves, so that noise does not fill the panel."""
    low, high = axes.get_ylim()
    room = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
