"""The layer curve of one target: data in, matplotlib Figure out, no global state kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_NAMES = {
    "balanced_accuracy": "Balanced accuracy",
    "roc_auc": "ROC AUC",
    "accuracy": "Accuracy",
    "r2": "R²",
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
}

# Okabe & Ito's palette, told apart by colour-blind readers; the markers tell them apart in grey.
SITE_STYLES = {
    "resid_post": ("#0072B2", "o"),
    "attn_out": ("#D55E00", "^"),
    "mlp_out": ("#009E73", "s"),
    "resid_mid": ("#CC79A7", "D"),
    "heads": ("#E69F00", "v"),
    "embed": ("#333333", "P"),
    "final_norm": ("#333333", "X"),
}
OTHER_STYLES = (("#56B4E9", "<"), ("#8C6D1F", ">"), ("#7F3C8D", "p"))

LEVEL = 0.05
"""Of a corrected p: layers above it are drawn hollow."""

FOOT_STEP = 0.04
"""Height of one plateau at the foot, as a share of the axes."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9.5,
    "axes.titlesize": 10.5,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "stratoscope",  # the same figure gives the same bytes
}


def draw_curves(curves: pl.DataFrame, target: str, *, probe: str | None = None, metric: str | None = None) -> Figure:
    """Draw score against layer, one line per site, with every control it must beat.

    Bands are 95% bootstrap intervals over groups. The grey band spans the shuffled labels of all sites, the dashed
    line is the text-only baseline, the dotted line chance; where there were permutations, the dash-dotted line is the
    score that has a corrected p of 0.05, and layers with a greater p are hollow. Rings mark peaks; the bars at the foot
    mark each site's plateau, the layers within one standard error of its peak. Sites of the whole model stand beside
    the layers.

    Parameters
    ----------
    curves : polars.DataFrame
        Layer curves of `summarise`, of any number of targets. Two more columns are drawn where they are given:
        ``surface_score``, a probe on length and frequency of the words, and ``test_probe``, the probe whose
        permutations gave ``p_corrected``; where it is another than the one drawn, its threshold is left out.
    target : str
    probe : str, optional
        Needed if the target was probed in several ways.
    metric : str, optional
        By default the first metric of the probe in `curves`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If `curves` holds no such rows, or several probes of the target and `probe` does not choose.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = choose_rows(curves, target, probe, metric)
    n_layers = int(rows["n_layers"][0])
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.1), layout="constrained")
        axes = figure.add_subplot()
        _draw_controls(axes, rows)
        layered = rows.filter(pl.col("layer").is_not_null()).partition_by("site", maintain_order=True)
        for rank, (site, style) in enumerate(zip(layered, site_styles(rows), strict=False)):
            _draw_site(axes, site.sort("layer"), style, foot=FOOT_STEP * (len(layered) - 0.4 - rank))
        _draw_hollow(axes, layered, site_styles(rows), _other_test(rows))
        _draw_whole_model(axes, rows.filter(pl.col("layer").is_null()), n_layers)
        _label(axes, rows, n_layers)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=2.4)
    return figure


def choose_rows(curves: pl.DataFrame, target: str, probe: str | None = None, metric: str | None = None) -> pl.DataFrame:
    """Rows of one target, probe and metric; see `draw_curves`."""
    rows = curves.filter(pl.col("target") == target, *([] if probe is None else [pl.col("probe") == probe]))
    probes = rows["probe"].unique(maintain_order=True).to_list()
    if len(probes) > 1:
        raise ValueError(f"target {target!r} was probed by {', '.join(probes)}; choose one with probe=")
    if probes:
        rows = rows.filter(pl.col("metric") == (metric or rows["metric"][0]))
    if rows.is_empty():
        raise ValueError(f"curves hold no rows of target {target!r}, probe {probe!r}, metric {metric!r}")
    return rows


def site_styles(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """Colour and marker of every site that has layers, in the order of the rows."""
    sites = rows.filter(pl.col("layer").is_not_null())["site"].unique(maintain_order=True).to_list()
    others = [site for site in sites if site not in SITE_STYLES]
    spare = {site: OTHER_STYLES[i % len(OTHER_STYLES)] for i, site in enumerate(others)}
    return [SITE_STYLES.get(site) or spare[site] for site in sites]


def _draw_controls(axes: Axes, rows: pl.DataFrame) -> None:
    layers = (
        rows.filter(pl.col("layer").is_not_null(), pl.col("shuffled_low").is_finite())
        .group_by("layer")
        .agg(pl.col("shuffled_low").min(), pl.col("shuffled_high").max(), pl.col("n_shuffles").first())
        .sort("layer")
    )
    if layers.height:
        label = f"shuffled labels ({layers['n_shuffles'][0]}×)"
        band = (layers["layer"], layers["shuffled_low"], layers["shuffled_high"])
        axes.fill_between(*band, color="#9a9a9a", alpha=0.28, linewidth=0, label=label)
    axes.axhline(rows["chance"][0], color="#555555", linewidth=0.9, linestyle=":", label="chance")
    threshold = _first_number(rows, "threshold")
    if threshold is not None and _other_test(rows) is None:
        axes.axhline(threshold, color="#A0522D", linewidth=0.9, linestyle="-.", label="p = 0.05 over all layers")
    text = _first_number(rows, "text_score")
    if text is not None:
        axes.axhline(text, color="#222222", linewidth=1.1, linestyle=(0, (5, 2)), label="words alone")
    surface = _first_number(rows, "surface_score")
    if surface is not None:
        axes.axhline(
            surface, color="#7F3C8D", linewidth=1.1, linestyle=(0, (6, 1.5, 1, 1.5)), label="length and frequency"
        )


def _first_number(rows: pl.DataFrame, column: str) -> float | None:
    """First number in a column, which may be absent."""
    if column not in rows.columns:
        return None
    numbers = rows[column].cast(pl.Float64).drop_nulls().drop_nans()
    return float(numbers[0]) if len(numbers) else None


def _other_test(rows: pl.DataFrame) -> str | None:
    """Name of the probe that gave p, where it is another than the one of the scores."""
    if "test_probe" not in rows.columns:
        return None
    tests = rows["test_probe"].drop_nulls()
    return str(tests[0]) if len(tests) and tests[0] != rows["probe"][0] else None


def _draw_hollow(axes: Axes, layered: list[pl.DataFrame], styles: list[tuple[str, str]], test: str | None) -> None:
    """Empty the markers of layers that are not above chance."""
    style: dict[str, Any] = {"linestyle": "none", "markersize": 3.6, "markerfacecolor": "white", "zorder": 4}
    weak = [site.filter(pl.col("p_corrected") > LEVEL, pl.col("score").is_finite()) for site in layered]
    for site, (color, marker) in zip(weak, styles, strict=False):
        axes.plot(site["layer"].to_numpy(), site["score"].to_numpy(), marker, color=color, **style)
    if any(site.height for site in weak):
        label = f"p > {LEVEL}" + (f", by {test}" if test else "")
        axes.plot([], [], "o", color="#555555", label=label, **style)


def _draw_site(axes: Axes, site: pl.DataFrame, style: tuple[str, str], *, foot: float) -> None:
    """Line, interval, peak and plateau of one site; `foot` is the plateau's height as a share of the axes."""
    color, marker = style
    layer, score, name = site["layer"].to_numpy(), site["score"].to_numpy(), site["site"][0]
    axes.fill_between(layer, site["low"].to_numpy(), site["high"].to_numpy(), color=color, alpha=0.15, linewidth=0)
    axes.plot(layer, score, color=color, marker=marker, markersize=3.6, linewidth=1.5, label=name, zorder=3)
    defined = site.filter(pl.col("score").is_finite())
    if defined.is_empty():
        return
    best = defined.row(int(defined["score"].arg_max() or 0), named=True)
    axes.plot(
        best["layer"], best["score"], "o", color=color, markersize=11, markerfacecolor="none", markeredgewidth=1.4
    )
    plateau = defined.filter(pl.col("score") >= best["score"] - best["se"])["layer"].to_numpy()
    across = axes.get_xaxis_transform()
    axes.hlines([foot] * len(plateau), plateau - 0.5, plateau + 0.5, color=color, linewidth=3.2, transform=across)
    beside = (plateau[-1] + 0.5, foot)
    place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
    axes.annotate(f"peak {best['layer']}", beside, xycoords=across, color=color, **place)


def _draw_whole_model(axes: Axes, rows: pl.DataFrame, n_layers: int) -> None:
    gap = 1 + 0.02 * n_layers
    places = {"embed": -gap}
    for row in rows.iter_rows(named=True):
        color, marker = SITE_STYLES.get(row["site"], OTHER_STYLES[0])
        place = places.get(row["site"], n_layers - 1 + gap)
        axes.vlines(place, row["low"], row["high"], color=color, linewidth=1.2)
        axes.plot(place, row["score"], marker, color=color, markersize=5.5, linestyle="none", label=row["site"])


def _label(axes: Axes, rows: pl.DataFrame, n_layers: int) -> None:
    last = max(n_layers - 1, 1)
    axes.set_xlim(-0.06 * last - 1, 1.06 * last + 1)
    low, high = axes.get_ylim()
    n_sites = rows.filter(pl.col("layer").is_not_null())["site"].n_unique()
    room = FOOT_STEP * (n_sites + 0.4)  # for the plateaus, as a share of the axes
    axes.set_ylim(low - (high - low) * room / (1 - room), high)
    metric = rows["metric"][0]
    axes.set_ylabel(METRIC_NAMES.get(metric, metric))
    label_layers(axes, n_layers)
    add_depth(axes, n_layers)


def label_layers(axes: Axes, n_layers: int) -> None:
    """Name the layers below the axes, and leave a light grid for the scores."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=12, integer=True).tick_values(0, n_layers - 1)
    axes.set_xticks([tick for tick in ticks if 0 <= tick < n_layers])
    axes.set_xlabel("layer (decoder block, from 0)")
    axes.spines[["right"]].set_visible(False)
    axes.grid(axis="y", color="#000000", alpha=0.07, linewidth=0.6)


def add_depth(axes: Axes, n_layers: int) -> None:
    """Show relative depth, layer / (n_layers - 1), above axes whose limits are set."""
    last = max(n_layers - 1, 1)
    depth = axes.twiny()
    depth.set_xlim(*(edge / last for edge in axes.get_xlim()))
    depth.spines["right"].set_visible(False)
    depth.set_xlabel("relative depth", labelpad=5)
    depth.set_xticks([0, 0.25, 0.5, 0.75, 1])
