"""Heat maps: layers against experiments, targets, distances, places, or layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.report.figure import STYLE, add_depth, label_layers
from stratoscope.study.page.labels import plain
from stratoscope.study.page.rows import NORMAL_NAME, layered, mean_curves, normalised, sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

COLOR_MAP = "viridis"
VARIABLE_NAMES = {"distance": "distance (tokens)", "place": "place in the list"}


def draw_by(curves: pl.DataFrame, by: str, site: str) -> Figure:
    """Draw layer x `by` ("experiment" or "target") of one site; rows in the order of `curves`, means over targets."""
    names = curves[by].unique(maintain_order=True).to_list()
    means = mean_curves(curves, by).filter(pl.col("site") == site)
    kept = [name for name in names if name in set(means[by])]
    return _draw_panels({site: means.rename({by: "row"})}, kept, labels=[plain(str(name)) for name in kept])


def draw_varied(rows: pl.DataFrame, by: str) -> Figure:
    """Draw layer x distance, or layer x place, of one target: one panel per site on one scale."""
    scores = layered(normalised(rows)).filter(pl.col(by).is_not_null()).with_columns(row=pl.col(by))
    values = sorted(scores[by].unique().to_list())
    panels = {site: scores.filter(pl.col("site") == site) for site in sites(scores)}
    return _draw_panels(panels, values, labels=[str(value) for value in values], name=VARIABLE_NAMES[by])


def draw_transfer(rows: pl.DataFrame, chance: float | None) -> Figure:
    """Draw train layer x test layer of one target: one square panel per site, from chance up."""
    from matplotlib import rc_context
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    names = rows["site"].unique(maintain_order=True).to_list()
    finite = rows["score"].drop_nulls().drop_nans()
    low = chance if chance is not None else _bound(finite.min())
    scale = Normalize(low, max(_bound(finite.max()), low + 1e-3))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.4 / max(len(names), 2) + 0.8), layout="constrained")
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            part = rows.filter(pl.col("site") == name)
            trained, tested = (sorted(part[column].unique().to_list()) for column in ("train_layer", "test_layer"))
            mesh = _fill(axes, _matrix(part, "train_layer", trained, "test_layer", tested, "score"), trained, scale)
            axes.set_aspect("equal")
            axes.set_title(name, loc="left", fontsize=9.5)
            axes.set_xlabel("test layer")
        panels[0].set_ylabel("train layer")
        figure.colorbar(mesh, ax=list(panels), label="held-out score", pad=0.02, extend="min")
    return figure


def _draw_panels(
    panels: dict[str, pl.DataFrame], values: Sequence[Any], *, labels: list[str], name: str = ""
) -> Figure:
    """Draw one panel per site below the other; every row of the tables has ``row, layer, normal, is_above``."""
    from matplotlib import rc_context
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    n_layers = int(next(iter(panels.values()))["n_layers"][0])
    top = max(_bound(part["normal"].drop_nans().max()) for part in panels.values())
    scale = Normalize(0, max(top, 0.05))
    with rc_context(STYLE):
        height = 0.5 + len(panels) * (0.25 * len(values) + 0.35) + 0.6
        figure = Figure(figsize=(7.2, height), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (site, part) in zip(grid, panels.items(), strict=True):
            layers = sorted(part["layer"].unique().to_list())
            matrix = _matrix(part, "row", values, "layer", layers, "normal")
            mesh = axes.pcolormesh(
                cell_edges(layers),
                np.arange(len(values) + 1) - 0.5,
                np.ma.masked_invalid(matrix),
                **_look(scale),
            )
            _mark_best(axes, matrix, layers, set(part.filter("is_above")["row"]), values)
            axes.set_yticks(range(len(values)), labels, fontsize=8)
            axes.tick_params(axis="y", length=0)
            axes.set_ylim(len(values) - 0.5, -0.5)
            axes.set_xlim(-0.5, n_layers - 0.5)
            label_layers(axes, n_layers)
            axes.grid(visible=False)
            axes.set_xlabel("" if axes is not grid[-1] else axes.get_xlabel())
            if axes is grid[0]:
                add_depth(axes, n_layers)
            name_site(axes, site)
        # Once for all panels: one of two rows is lower than its label is long.
        figure.supylabel(name, fontsize=9)
        bar = figure.colorbar(mesh, ax=list(grid), label=NORMAL_NAME, pad=0.02, extend="min", aspect=25)
        bar.outline.set_visible(False)
    return figure


def _look(scale: Normalize) -> dict[str, Any]:
    from matplotlib import colormaps

    colors = colormaps[COLOR_MAP].with_extremes(bad="#d9d9d9", under="#1d0030")
    return {"cmap": colors, "norm": scale, "rasterized": True, "edgecolors": "none", "antialiased": False}


def _fill(axes: Axes, matrix: NDArray[np.float64], trained: list[int], scale: Normalize) -> Any:  # noqa: ANN401
    """Fill a square panel, with a line where train and test layer are the same."""
    edges = cell_edges(trained)
    mesh = axes.pcolormesh(cell_edges(trained), edges, np.ma.masked_invalid(matrix), **_look(scale))
    axes.plot([edges[0], edges[-1]], [edges[0], edges[-1]], color="white", linewidth=0.6, alpha=0.7)
    return mesh


def _mark_best(
    axes: Axes, matrix: NDArray[np.float64], layers: list[int], strong: set[Any], values: Sequence[Any]
) -> None:
    """Put a dot on the best layer of every row that is among the `strong` ones."""
    for at, (value, row) in enumerate(zip(values, matrix, strict=True)):
        if value in strong and np.isfinite(row).any():
            axes.plot(layers[int(np.nanargmax(row))], at, "o", ms=5, mfc="white", mec="black", mew=0.8)


def _matrix(
    rows: pl.DataFrame, down: str, downs: Sequence[Any], across: str, acrosses: Sequence[Any], value: str
) -> NDArray[np.float64]:
    matrix = np.full((len(downs), len(acrosses)), np.nan)
    at_down, at_across = ({key: i for i, key in enumerate(keys)} for keys in (downs, acrosses))
    for i, j, number in rows.select(down, across, value).iter_rows():
        if i in at_down and number is not None:
            matrix[at_down[i], at_across[j]] = number
    return matrix


def name_site(axes: Axes, site: str) -> None:
    """Write the site of a panel above its left edge, clear of the scale of relative depth."""
    text: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8.5, "fontweight": "bold"}
    axes.annotate(plain(site), (0, 1), (-14, 4), "axes fraction", "offset points", **text)


def cell_edges(layers: Sequence[int]) -> NDArray[np.float64]:
    """Edges of the cells of ascending layers: halfway to the neighbours, and half a layer at the ends."""
    centers = np.asarray(layers, dtype=np.float64)
    return np.concatenate([[centers[0] - 0.5], (centers[1:] + centers[:-1]) / 2, [centers[-1] + 0.5]])


def _bound(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
