"""The report: figures and their tables as files, and one HTML page that holds everything it shows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import polars as pl

from stratoscope.report.figure import draw_curves
from stratoscope.report.image import encode_figure, svg_uri
from stratoscope.report.section import Section
from stratoscope.report.templates import environment
from stratoscope.store.durable import replace_file


class Panel(NamedTuple):
    """One figure on the page.

    svg : data URI of the figure
    files : names under ``figures/``, by extension
    tables : (metric, rows of the peak table), the metric drawn first
    """

    target: str
    probe: str
    svg: str
    files: dict[str, str]
    tables: list[tuple[str, list[dict[str, Any]]]]


def write_report(out_dir: str | os.PathLike[str], sections: Sequence[Section], provenance: Mapping[str, Any]) -> Path:
    """Write ``report.html`` and ``figures/*.png|svg|csv`` under `out_dir`.

    The page loads nothing: figures are embedded, and it reads as well from a mail as from a disk. Next to each figure
    lies its tidy table, all metrics included.

    Parameters
    ----------
    out_dir : path
        Made if missing.
    sections : sequence of Section
        At least one; names differ.
    provenance : nested JSON
        What all sections share: versions, server, host. Shown as it is.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    ValueError
        If there are no sections, or two have one name.
    """
    names = [section.name for section in sections]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sections {names}: give at least one, each with its own name")
    folder = Path(out_dir)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    panels = [_write_panels(section, folder / "figures") for section in sections]
    page = folder / "report.html"
    html = render(sections, panels, provenance)
    replace_file(page, lambda file: file.write(html.encode()))
    return page


def render(sections: Sequence[Section], panels: Sequence[Sequence[Panel]], provenance: Mapping[str, Any]) -> str:
    """Fill the template; everything shown is escaped."""
    resamples = sorted({n for section in sections for n in section.curves["n_resamples"].to_list()})
    return (
        environment()
        .get_template("report.html")
        .render(
            sections=list(zip(sections, panels, strict=True)),
            provenance=provenance,
            n_resamples=" or ".join(map(str, resamples)),
        )
    )


def _write_panels(section: Section, folder: Path) -> list[Panel]:
    return [_write_panel(section, target, probe, folder) for target, probe in section.panels]


def _write_panel(section: Section, target: str, probe: str, folder: Path) -> Panel:
    of_panel = (pl.col("target") == target) & (pl.col("probe") == probe)
    curves, peaks = section.curves.filter(of_panel), section.peaks.filter(of_panel)
    figure = draw_curves(curves, target, probe=probe)
    contents = {
        "svg": encode_figure(figure, "svg"),
        "png": encode_figure(figure, "png"),
        "csv": curves.write_csv().encode(),
    }
    stem = "-".join(quote(part, safe=" ") for part in (section.name, target, probe))
    for extension, content in contents.items():
        _replace(folder / f"{stem}.{extension}", content)
    tables = [(metric, peaks.filter(pl.col("metric") == metric).to_dicts()) for metric in _metrics(curves)]
    uri = svg_uri(contents["svg"])
    # A percent sign in a file name is itself escaped in a link.
    return Panel(target, probe, uri, {extension: quote(f"{stem}.{extension}") for extension in contents}, tables)


def _metrics(curves: pl.DataFrame) -> list[str]:
    return curves["metric"].unique(maintain_order=True).to_list()


def _replace(path: Path, content: bytes) -> None:
    replace_file(path, lambda file: file.write(content))
