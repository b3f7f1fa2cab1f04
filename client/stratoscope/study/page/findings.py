"""What goes across layers and experiments: contrasts, coordination and order, each with its verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from stratoscope.study.page.forest import Estimate, draw_forest
from stratoscope.study.page.gallery import Gallery, Picture
from stratoscope.study.page.rows import sites

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


class Kind(NamedTuple):
    """How one table is told: `columns` are (name, heading), `draw` makes its figure."""

    table: str
    title: str
    about: str
    caption: str
    columns: tuple[tuple[str, str], ...]
    draw: Callable[[list[Row]], Figure]
    digits: int = 3


class Finding(NamedTuple):
    """One table on the page, with its figure of the main site and a count of its verdicts."""

    kind: Kind
    tally: list[tuple[str, int]]
    picture: Picture | None
    rows: list[dict[str, Any]]


def make_finding(kind: Kind, table: pl.DataFrame, gallery: Gallery) -> Finding:
    """Draw the rows of the residual stream, or else of the first site, and keep all for the table."""
    rows = table.to_dicts()
    picture = None
    if rows:
        main = sites(table.with_columns(layer=pl.lit(0)))[0]
        figure = kind.draw([row for row in rows if row["site"] == main])
        caption = f"{kind.caption} Site: {main}; the table has every site."
        picture = gallery.add(figure, kind.table, alt=f"{kind.title}, {main}", caption=caption)
    return Finding(kind, tally(rows), picture, rows)


def tally(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Count verdicts, the most frequent first."""
    return Counter(row["verdict"] or "no verdict" for row in rows).most_common()


def _of_target(row: Row) -> str:
    return f"{row['experiment']} · {row['target']}"


def _draw_rise(rows: list[Row]) -> Figure:
    panels = {
        f"{part} (score)": [
            Estimate(_of_target(row), row[part], row[f"{part}_low"], None, row["verdict"]) for row in rows
        ]
        for part in ("fall", "rise")
    }
    return draw_forest(panels)


def _draw_lag(rows: list[Row]) -> Figure:
    lag = [
        Estimate(_of_target(row), row["lag1"], row["lag1_null_low"], row["lag1_null_high"], row["verdict"])
        for row in rows
    ]
    return draw_forest({"lag-1 autocorrelation of the detrended curve": lag}, is_null=True)


def _draw_tradeoff(rows: list[Row]) -> Figure:
    pairs = [
        Estimate(f"{r['target_a']} · {r['target_b']}", r["correlation"], r["null_low"], r["null_high"], r["verdict"])
        for r in rows
    ]
    return draw_forest({"correlation over layers of the detrended curves": pairs}, is_null=True)


def _draw_order(rows: list[Row]) -> Figure:
    pairs = [
        Estimate(f"{row['earlier']} → {row['later']}", row["difference"], row["low"], row["high"], row["verdict"])
        for row in rows
    ]
    return draw_forest({"difference of the peaks (layers)": pairs})


_INTERVAL = (("low", "low"), ("high", "high"), ("verdict", "verdict"))
_NULL = (("null_low", "null from"), ("null_high", "to"), ("p", "p"), ("verdict", "verdict"))
_TARGET = (("experiment", "experiment"), ("target", "target"), ("site", "site"))

KINDS = (
    Kind(
        "order",
        "Order of the peaks",
        "How many layers after the first experiment the second one peaks. An interval that includes 0 leaves the order "
        "open.",
        "Right of the dotted line the order is as the paper has it. Bars: 95% intervals.",
        (("earlier", "earlier"), ("later", "later"), ("site", "site"), ("difference", "difference"), *_INTERVAL),
        _draw_order,
        digits=1,
    ),
    Kind(
        "rise_fall_rise",
        "Rise, fall and rise again",
        "Whether a curve falls after a first peak and rises to a second one, by the drop from the first peak to the "
        "trough and the climb from there. Both must be above 0; “too short” says that the model has too few layers for "
        "the windows.",
        "The drop from the first peak to the trough and the climb to the second peak. Lines reach down to the lower "
        "bounds.",
        (
            *_TARGET,
            *(("peak1", "first peak"), ("trough", "trough"), ("peak2", "second peak")),
            *(("fall", "fall"), ("fall_low", "at least"), ("fall_p", "p")),
            *(("rise", "rise"), ("rise_low", "at least"), ("rise_p", "p"), ("verdict", "verdict")),
        ),
        _draw_rise,
    ),
    Kind(
        "coordination",
        "Coordination of neighbouring layers",
        "A zig-zag in a curve proves nothing by itself: white noise alternates in sign two thirds of the time. So "
        "first the reliability of the detrended curve over halves of the items, then its lag-1 autocorrelation "
        "against a null that went through the same detrending. Alternating layers would give a value below the range "
        "of the null.",
        "Markers: the measured value. Grey: the range of the null.",
        (
            *_TARGET,
            *(("reliability", "reliability"), ("reliability_p", "p"), ("lag1", "lag 1")),
            *(("lag1_null_low", "null from"), ("lag1_null_high", "to"), ("lag1_p", "p"), ("verdict", "verdict")),
        ),
        _draw_lag,
    ),
    Kind(
        "tradeoff",
        "Trade-off between targets",
        "Whether layers that are good at one target are bad at another, by the correlation of their detrended curves. "
        "Specialising layers would give a value below the range of the null.",
        "Markers: the measured value. Grey: the range of the null.",
        (
            ("target_a", "target"),
            ("target_b", "other target"),
            ("site", "site"),
            ("correlation", "correlation"),
            *_NULL,
        ),
        _draw_tradeoff,
    ),
)
