"""Estimates in rows, each with its interval or the range that chance gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stratoscope.report.figure import STYLE
from stratoscope.study.page.labels import COLORS, plain, verdict_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NULL: Any = {"color": "#9a9a9a", "alpha": 0.45, "lw": 6}
_MARKERS = {"yes": "o", "no": "X", "open": "d"}


class Estimate(NamedTuple):
    """One row: a value with its `low` and `high`, each None where there is none."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    verdict: str | None


def draw_forest(panels: Mapping[str, Sequence[Estimate]], *, is_null: bool = False) -> Figure:
    """Draw estimates in rows, coloured by verdict; panels stand side by side and share their rows.

    Parameters
    ----------
    panels : mapping of the name of a horizontal axis to its estimates
        From the top; the labels and verdicts are those of the first panel.
    is_null : bool
        Whether `low` and `high` are the range of the null hypothesis, a grey bar, instead of an interval of the value.
        A limit that is None is the value itself.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = next(iter(panels.values()))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.2 + 0.21 * len(rows)), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (name, estimates) in zip(grid, panels.items(), strict=True):
            _draw_panel(axes, estimates, is_null=is_null)
            axes.set_xlabel(name)
        grid[0].set_yticks(range(len(rows)), [plain(one.label, 44) for one in rows], fontsize=8)
        grid[0].set_ylim(len(rows) - 0.4, -0.6)
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=1)
    return figure


def _draw_panel(axes: Axes, estimates: Sequence[Estimate], *, is_null: bool) -> None:
    axes.axvline(0, color="#555555", linewidth=0.9, linestyle=":")
    named: set[str] = set()
    for at, one in enumerate(estimates):
        kind = verdict_kind(one.verdict)
        color = COLORS[kind]
        low, high = (one.value if limit is None else limit for limit in (one.low, one.high))
        if low is not None and high is not None:
            look: dict[str, Any] = _NULL if is_null else {"color": color, "lw": 1.4}
            axes.hlines(at, low, high, **look)
        verdict = one.verdict or "no verdict"
        label = "_" if verdict in named else plain(verdict)
        named.add(verdict)
        value = float("nan") if one.value is None else one.value
        axes.plot(value, at, _MARKERS[kind], color=color, markersize=6, linestyle="none", label=label)
    if is_null and estimates:
        axes.hlines(0, float("nan"), float("nan"), label="range of the null", **_NULL)
    axes.tick_params(axis="y", length=0)
    axes.spines[["right", "top"]].set_visible(False)
    axes.grid(axis="x", color="#000000", alpha=0.07, linewidth=0.6)
