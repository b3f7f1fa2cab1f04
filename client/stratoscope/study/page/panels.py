"""One target of an experiment: its figures and its peaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from stratoscope.report.figure import LEVEL, draw_curves
from stratoscope.report.prose import interval, number
from stratoscope.study.page.curves import draw_varied_curves
from stratoscope.study.page.gallery import Gallery, Picture
from stratoscope.study.page.heatmaps import draw_varied
from stratoscope.study.page.rows import layered, sites, variable

_CURVES = (
    "Held-out score of the probe at every layer, one line per site. Coloured bands: 95% bootstrap intervals over "
    "groups. Grey: shuffled labels, widest over sites. Hollow markers: p above 0.05, corrected for the choice among "
    "layers and sites. Rings: peaks, named at the foot; bars at the foot: layers within one standard error of the peak."
)
_VARIED = {
    "distance": "One line per distance between what is asked for and the token that is read, in tokens of neutral "
    "text. Hollow markers: p above 0.05, corrected.",
    "place": "One line per place in the list of the item that is asked for; the last token of the list is read. "
    "Hollow markers: p above 0.05, corrected.",
}
_HEAT = (
    "The same scores as a map, 0 at chance and 1 if perfect. Dots: the best layer of each row that is above chance "
    "anywhere; grey: no score."
)


@dataclass(frozen=True)
class Panel:
    """One target under one probe.

    headline : its peak in a few words
    by : "distance", "place" or None
    test : name of the probe that gave p, where it is another one
    tables : (metric, rows of the peak table), the metric drawn first
    """

    target: str
    probe: str
    headline: str
    by: str | None
    test: str | None
    pictures: list[Picture]
    tables: list[tuple[str, list[dict[str, Any]]]]


def make_panel(curves: pl.DataFrame, peaks: pl.DataFrame, gallery: Gallery) -> Panel:
    """Draw one target under one probe; `curves` and `peaks` hold all its metrics."""
    experiment, target, probe = curves.select("experiment", "target", "probe").row(0)
    metrics = curves["metric"].unique(maintain_order=True).to_list()
    drawn, by = curves.filter(metric=metrics[0]), variable(curves)
    pictures = []
    if by is None and layered(drawn).height:
        figure = draw_curves(curves, target, probe=probe)
        alt = f"Layer curves of {target}; the peaks are in the table below"
        pictures.append(gallery.add(figure, "curves", experiment, target, probe, alt=alt, caption=_CURVES))
    elif by is not None and layered(drawn).height:
        about, name = f"{target}, layer by {by}", (experiment, target, probe)
        lines, heat = draw_varied_curves(drawn, by), draw_varied(drawn, by)
        pictures.append(gallery.add(lines, "curves", *name, alt=f"Curves of {about}", caption=_VARIED[by]))
        pictures.append(gallery.add(heat, by, *name, alt=f"Heat map of {about}", caption=_HEAT))
    tables = [(metric, _of_metric(peaks, metric)) for metric in metrics]
    return Panel(target, probe, _headline(drawn, tables[0][1], by), by, _other_test(drawn), pictures, tables)


def _of_metric(peaks: pl.DataFrame, metric: str) -> list[dict[str, Any]]:
    return peaks.filter(metric=metric).to_dicts() if peaks.height else []


def _headline(drawn: pl.DataFrame, peaks: list[dict[str, Any]], by: str | None) -> str:
    if by is not None:
        return f"at {drawn[by].n_unique()} {by}s"
    main = next((row for site in sites(drawn) for row in peaks if row["site"] == site), None)
    if main is None:
        return "no layer has a defined score"
    p = main.get("p_corrected")
    weak = ", not above chance" if p is not None and p > LEVEL else ""
    score = f"{number(main['score'])} {interval(main.get('low'), main.get('high'))}"
    return f"peak at layer {main['peak_layer']} of {main['site']}: {score}{weak}"


def _other_test(rows: pl.DataFrame) -> str | None:
    tests = rows["test_probe"].drop_nulls().unique().to_list() if "test_probe" in rows.columns else []
    return next((test for test in tests if test != rows["probe"][0]), None)
