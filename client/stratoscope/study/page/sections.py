"""One experiment on the page: what was asked, and every figure that answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from stratoscope.study.page.book import Book
from stratoscope.study.page.gallery import Gallery, Picture
from stratoscope.study.page.heads import best_heads, draw_heads
from stratoscope.study.page.heatmaps import draw_by, draw_transfer
from stratoscope.study.page.panels import Panel, make_panel
from stratoscope.study.page.rows import defined, leading, sites, variable

_TARGETS = (
    "Every target of the experiment at a glance, {site}: 0 at chance, 1 if perfect; for ridge regression R². "
    "Dots: the best layer of each row that is above chance anywhere; grey: no score."
)
_TRANSFER = (
    "A probe fitted at one layer and scored at another, on stimuli held out from the fit: a bright square off the line "
    "suggests that layers hold “{target}” in the same directions. Colours begin at chance."
)
_HEADS = (
    "Every head of the layers that were probed, on “{target}”. Dots: p at most 0.05, corrected for the choice among all"
    " heads. Colours begin at chance."
)


@dataclass(frozen=True)
class Section:
    """One experiment.

    about : ``name, title, level, question, control``
    tokens : rows of the table of tokens
    glance : targets x layers, where there are several targets
    panels : the first is shown, the others unfold
    transfer, heads : (target, picture) and (target, picture, best heads)
    """

    about: Mapping[str, Any]
    tokens: list[dict[str, Any]]
    glance: Picture | None
    panels: list[Panel]
    transfer: list[tuple[str, Picture]]
    heads: list[tuple[str, Picture, list[dict[str, Any]]]]


def make_section(book: Book, about: Mapping[str, Any], gallery: Gallery) -> Section:
    """Draw everything there is of one experiment."""
    name = about["name"]
    curves, peaks = _of(book.table("curves"), name), _of(book.table("peaks"), name)
    panels = [
        make_panel(part, _of_panel(peaks, part), gallery)
        for part in (curves.partition_by("target", "probe", maintain_order=True) if curves.height else [])
    ]
    return Section(
        about=about,
        tokens=_of(book.table("tokens"), name).to_dicts(),
        glance=_glance(curves, name, gallery),
        panels=_ordered(panels, about.get("targets") or ()),
        transfer=[_transfer(part, curves, gallery) for part in _by_target(_of(book.table("transfer"), name))],
        heads=[_heads(part, curves, gallery) for part in _by_target(_of(book.table("heads"), name))],
    )


def _of(table: pl.DataFrame, experiment: str) -> pl.DataFrame:
    return table if table.is_empty() else table.filter(pl.col("experiment") == experiment)


def _of_panel(peaks: pl.DataFrame, curves: pl.DataFrame) -> pl.DataFrame:
    keys = ["target", "probe"]
    return peaks if peaks.is_empty() else peaks.join(curves.select(keys).unique(), on=keys, how="semi")


def _by_target(table: pl.DataFrame) -> list[pl.DataFrame]:
    """Parts of a table by target, those without any score left out."""
    parts = table.partition_by("target", maintain_order=True) if table.height else []
    return [part for part in parts if part["score"].is_finite().any()]


def _ordered(panels: list[Panel], targets: Any) -> list[Panel]:  # noqa: ANN401  plain names, from the configuration
    order = {target: i for i, target in enumerate(targets)}
    return sorted(panels, key=lambda panel: order.get(panel.target, len(order)))


def _glance(curves: pl.DataFrame, name: str, gallery: Gallery) -> Picture | None:
    if curves.is_empty() or variable(curves) or curves["target"].n_unique() < 3 or defined(curves).is_empty():
        return None
    site = sites(defined(curves))[0]
    alt = f"Heat map of the targets of {name} over layers, {site}"
    return gallery.add(draw_by(curves, "target", site), "targets", name, alt=alt, caption=_TARGETS.format(site=site))


def _transfer(part: pl.DataFrame, curves: pl.DataFrame, gallery: Gallery) -> tuple[str, Picture]:
    experiment, target = part.select("experiment", "target").row(0)
    figure, alt = draw_transfer(part, _chance(curves, target)), f"Heat map of {target}: train layer by test layer"
    picture = gallery.add(figure, "transfer", experiment, target, alt=alt, caption=_TRANSFER.format(target=target))
    return target, picture


def _heads(part: pl.DataFrame, curves: pl.DataFrame, gallery: Gallery) -> tuple[str, Picture, list[dict[str, Any]]]:
    experiment, target = part.select("experiment", "target").row(0)
    figure, alt = draw_heads(part, _chance(curves, target)), f"Heat map of {target}: layer by head"
    picture = gallery.add(figure, "heads", experiment, target, alt=alt, caption=_HEADS.format(target=target))
    return target, picture, best_heads(part).to_dicts()


def _chance(curves: pl.DataFrame, target: str) -> float | None:
    rows = curves if curves.is_empty() else leading(curves).filter(pl.col("target") == target)
    return float(rows["chance"][0]) if rows.height else None
