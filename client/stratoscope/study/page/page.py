"""The page of a study of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from stratoscope.report.templates import environment
from stratoscope.store.durable import replace_file
from stratoscope.study.page.book import Book, Comparison
from stratoscope.study.page.findings import KINDS, make_finding, tally
from stratoscope.study.page.gallery import Gallery, Picture
from stratoscope.study.page.heatmaps import draw_by
from stratoscope.study.page.labels import verdict_kind
from stratoscope.study.page.overview import draw_overview, draw_peaks
from stratoscope.study.page.rows import defined, leading, sites
from stratoscope.study.page.sections import make_section
from stratoscope.study.page.tables import write_tables

if TYPE_CHECKING:
    from jinja2 import Environment

_OVERVIEW = (
    "One line per level: the mean over its targets of (score − chance) / (1 − chance), which is 0 at chance and 1 if "
    "perfect; for ridge regression R² itself. A target at several distances or places counts once. Rings: the highest "
    "mean, where any target of the level is above chance. These are means of unlike targets, without an interval: "
    "whether levels differ in order is tested further down."
)
_PEAKS = (
    "Where each target peaks, {site}. Markers: the best layer, hollow where it is not above chance. Thin: the 95% set "
    "of layers that may be the best. Thick: layers within one standard error of the peak. Experiments over distances "
    "or places have figures of their own."
)
_EXPERIMENTS = (
    "Mean over the targets of each experiment, {site}: 0 at chance, 1 if perfect. Dots: the best layer of each row, "
    "where any target is above chance. Grey: no score."
)


def write_page(folder: Path, book: Book) -> Path:
    """Write ``report.html``, ``figures/*.svg|png`` and ``tables/*.parquet|csv`` under `folder`.

    The page loads nothing: figures are embedded, and it reads as well from a mail as from a disk.

    Parameters
    ----------
    folder : Path
        Made if missing.
    book : Book

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    links = write_tables(folder, book.tables)
    gallery = Gallery(folder)
    html = (
        study_environment()
        .get_template("study.html")
        .render(
            book=book,
            claims=book.table("claims").to_dicts(),
            overview=_overview(book, gallery),
            sections=[make_section(book, about, gallery) for about in book.experiments],
            maps=_maps(book.table("curves"), gallery),
            findings=[make_finding(kind, book.table(kind.table), gallery) for kind in KINDS],
            links=links,
            n_resamples=resamples(book),
        )
    )
    path = folder / "report.html"
    replace_file(path, lambda file: file.write(html.encode()))
    return path


def study_environment() -> Environment:
    """Templates of the study's pages."""
    made = environment(["stratoscope.study.page"])
    made.filters.update(kind=verdict_kind, tally=tally)
    return made


def resamples(book: Book | Comparison) -> str:
    """Say how many resamples the intervals come from."""
    curves = book.table("curves")
    found = curves["n_resamples"].drop_nulls().unique().sort().to_list() if "n_resamples" in curves.columns else []
    return " or ".join(map(str, found)) or "many"


def _overview(book: Book, gallery: Gallery) -> list[Picture]:
    curves, pictures = book.table("curves"), []
    levels = _levels(book)
    if _is_drawable(curves):
        figure = draw_overview(curves, levels)
        alt = "Mean curves of every level over layers"
        pictures.append(gallery.add(figure, "overview", alt=alt, caption=_OVERVIEW))
    peaks = _main_peaks(book)
    if peaks.height:
        alt = "Peak layers of every target, with their 95% sets"
        caption = _PEAKS.format(site=peaks["site"][0])
        pictures.append(gallery.add(draw_peaks(peaks, levels), "peaks", alt=alt, caption=caption))
    return pictures


def _levels(book: Book) -> list[str]:
    """Levels in the order of the experiments, then those that only the tables name."""
    named = [one["level"] for one in book.experiments]
    for table in (book.table("curves"), book.table("peaks")):
        named += [] if table.is_empty() else table["level"].unique(maintain_order=True).to_list()
    return list(dict.fromkeys(named))


def _main_peaks(book: Book) -> pl.DataFrame:
    """Peaks of every target at the main site, in the order of the experiments; none that go over distance or place."""
    peaks = book.table("peaks")
    if peaks.is_empty():
        return peaks
    order = {one["name"]: i for i, one in enumerate(book.experiments)}
    single = leading(peaks.filter(pl.col("distance").is_null(), pl.col("place").is_null()))
    main = sites(peaks.with_columns(layer=pl.col("peak_layer")))[:1]
    of_main = single.filter(pl.col("site").is_in(main))
    return of_main.sort(pl.col("experiment").replace_strict(order), maintain_order=True)


def _maps(curves: pl.DataFrame, gallery: Gallery) -> list[Picture]:
    """Experiments x layers, one map per site."""
    if not _is_drawable(curves):
        return []
    return [
        gallery.add(
            draw_by(curves, "experiment", site),
            "experiments",
            site,
            alt=f"Heat map of experiments over layers, {site}",
            caption=_EXPERIMENTS.format(site=site),
        )
        for site in sites(defined(curves))
    ]


def _is_drawable(curves: pl.DataFrame) -> bool:
    return not curves.is_empty() and defined(curves).height > 0
