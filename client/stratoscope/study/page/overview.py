"""The study at a glance: the mean curve of every level, and the layers where its targets peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from stratoscope.report.figure import LEVEL, STYLE, add_depth, label_layers
from stratoscope.study.page.curves import widen
from stratoscope.study.page.labels import plain, styles
from stratoscope.study.page.rows import NORMAL_NAME, mean_curves, sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_overview(curves: pl.DataFrame, levels: Sequence[str]) -> Figure:
    """Draw the mean normalised curve of every level: the first site large, the others below it.

    Parameters
    ----------
    curves : polars.DataFrame
        At least one row that has a layer and a defined score.
    levels : sequence of str
        In the order of the legend.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    means = mean_curves(curves, "level")
    first, *others = sites(means)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.4 if others else 4.2), layout="constrained")
        grid = figure.add_gridspec(2 if others else 1, max(len(others), 1), height_ratios=[1.35, 1][: 1 + bool(others)])
        main = figure.add_subplot(grid[0, :])
        _draw_means(main, means.filter(site=first), levels, title=f"{first}: mean over the targets of each level")
        add_depth(main, int(means["n_layers"][0]))
        for column, site in enumerate(others):
            axes = figure.add_subplot(grid[1, column], sharey=main)
            _draw_means(axes, means.filter(site=site), levels, title=site)
            axes.set_xlabel("layer")
            if column:
                axes.label_outer(remove_inner_ticks=True)
        main.set_ylim(bottom=max(main.get_ylim()[0], -0.3))
        widen(main)
        figure.legend(*main.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=2.4)
    return figure


def _draw_means(axes: Axes, rows: pl.DataFrame, levels: Sequence[str], *, title: str) -> None:
    axes.axhline(0, color="#555555", linewidth=0.9, linestyle=":", label="chance")
    n_layers = int(rows["n_layers"][0])
    for level, (color, marker) in styles(levels).items():
        level_rows = rows.filter(level=level).sort("layer")
        if level_rows.is_empty():
            continue
        line: dict[str, Any] = {"color": color, "marker": marker, "markersize": 3.4, "linewidth": 1.5}
        axes.plot(level_rows["layer"], level_rows["normal"], label=plain(level), **line)
        if level_rows["is_above"].any():
            best = level_rows.row(int(level_rows["normal"].arg_max() or 0), named=True)
            axes.plot(best["layer"], best["normal"], "o", color=color, ms=10, mfc="none", mew=1.3)
    last = max(n_layers - 1, 1)
    axes.set_xlim(-0.03 * last, 1.03 * last)
    axes.set_ylabel(NORMAL_NAME)
    axes.set_title(title, loc="left", fontsize=9.5)
    label_layers(axes, n_layers)


def draw_peaks(peaks: pl.DataFrame, levels: Sequence[str]) -> Figure:
    """Draw where each target peaks: a dot at the best layer, thin its 95% set, thick its plateau.

    Parameters
    ----------
    peaks : polars.DataFrame
        One row per target, of one site.
    levels : sequence of str
        In the order of the legend.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    n_layers, last = int(peaks["n_layers"][0]), max(int(peaks["n_layers"][0]) - 1, 1)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.5 + 0.2 * peaks.height), layout="constrained")
        axes = figure.add_subplot()
        named: set[str] = set()
        for at, row in enumerate(peaks.iter_rows(named=True)):
            color, marker = styles(levels)[row["level"]]
            label = "_" if row["level"] in named else plain(row["level"])
            named.add(row["level"])
            _draw_peak(axes, row, at, {"color": color, "marker": marker, "label": label})
        axes.set_yticks(range(peaks.height), [plain(f"{r['experiment']} · {r['target']}") for r in peaks.to_dicts()])
        axes.tick_params(axis="y", labelsize=8, length=0)
        axes.set_ylim(peaks.height - 0.4, -0.6)
        axes.set_xlim(-0.03 * last - 0.5, 1.03 * last + 0.5)
        label_layers(axes, n_layers)
        add_depth(axes, n_layers)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, handlelength=1)
    return figure


def _draw_peak(axes: Axes, row: dict[str, Any], at: int, style: dict[str, Any]) -> None:
    color = style["color"]
    for first, last in ranges(row["peak_set"]):
        axes.hlines(at, first - 0.4, last + 0.4, color=color, linewidth=1.1)
    for first, last in ranges(row["plateau"]):
        axes.hlines(at, first - 0.4, last + 0.4, color=color, linewidth=4.5, alpha=0.35)
    weak = row["p_corrected"] is not None and row["p_corrected"] > LEVEL
    face = "white" if weak else color
    axes.plot(row["peak_layer"], at, linestyle="none", markersize=5.5, markerfacecolor=face, zorder=4, **style)


def ranges(text: str | None) -> list[tuple[int, int]]:
    """Read layers written as ranges: "3-5, 8" is [(3, 5), (8, 8)]."""
    parts = [part.strip().split("-") for part in (text or "").split(",") if part.strip()]
    return [(int(part[0]), int(part[-1])) for part in parts]
