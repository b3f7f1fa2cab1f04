"""The page shows the numbers of the frames, loads nothing, and trusts no name."""

import base64
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from stratoscope.probes import SweepResult, sweep
from stratoscope.report import Section, draw_curves, make_section, write_report
from stratoscope.report.prose import flatten, methods, number, onset

HOSTILE = "<script>alert('x')</script>"
MANIFEST = {
    "fingerprint": "3f9c",
    "model": {"n_layers": 5, "sites": ["resid_post", "mlp_out"]},
    "files": [{"sha": HOSTILE}],
}


@cache
def _result(target: str = "edible", probe: str = "svm") -> SweepResult:
    rng = np.random.default_rng(0)
    groups, y = np.arange(60), np.arange(60) % 2
    columns: dict[tuple[str, int | None], np.ndarray] = {("embed", None): rng.normal(size=(60, 8))}
    for site in ("resid_post", "mlp_out"):
        for layer in range(5):
            columns[site, layer] = rng.normal(size=(60, 8)) + 1.5 * (layer == 2) * y[:, None]
    texts = [f"An item{group}" for group in groups]
    labels = y if probe == "svm" else y + rng.normal(size=60)
    return sweep(
        columns,
        labels,
        groups=groups,
        texts=texts,
        target=target,
        probe=probe,
        alpha=1.0,
        n_shuffles=2,
        permutations=100,
    )


@cache
def _section(name: str = "items", target: str = "edible", title: str = "Items") -> Section:
    results = [_result(target), _result(target, "ridge")]
    return make_section(name, title, f"About {title}", results, n_layers=5, provenance=MANIFEST)


class Page(HTMLParser):
    """Collects what a browser would load, follow and show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def _write(tmp_path: Path, *sections: Section) -> tuple[Path, str, Page]:
    path = write_report(tmp_path, sections or (_section(),), MANIFEST)
    html = path.read_text("utf-8")
    return path, html, Page(html)


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    _, html, page = _write(tmp_path)
    loading = [
        v for tag, name, v in page.attributes if name in ("src", "srcset", "data") or (tag, name) == ("link", "href")
    ]
    assert len(loading) == 2, "two figures"
    assert all(value.startswith("data:image/svg+xml;base64,") for value in loading)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "@import" not in html
    assert not re.search(r"url\(", html)


def test_the_embedded_figures_load_nothing_either(tmp_path: Path) -> None:
    _, _, page = _write(tmp_path)
    for value in [v for tag, name, v in page.attributes if (tag, name) == ("img", "src")]:
        svg = base64.b64decode(value.split(",", 1)[1]).decode()
        assert "<svg" in svg
        assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', svg))


def test_hostile_names_are_shown_and_not_run(tmp_path: Path) -> None:
    path, html, page = _write(tmp_path, _section("../evil", HOSTILE, HOSTILE))
    assert "script" not in page.tags
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;") >= 4, "title, target, description, provenance"
    assert {file.parent for file in tmp_path.rglob("*.*") if file.is_file()} == {path.parent, path.parent / "figures"}


def test_the_peak_tables_equal_the_frames(tmp_path: Path) -> None:
    _, _, page = _write(tmp_path)
    shown = [row for row in page.rows if row and row[0] in ("resid_post", "mlp_out")]
    peaks = _section().peaks
    assert len(shown) == peaks.height == 12
    for cells, row in zip(shown, peaks.iter_rows(named=True), strict=True):
        assert cells[:3] == [row["site"], str(row["peak_layer"]), row["peak_set"]]
        assert cells[3:5] == [f"{row['peak_relative_depth']:.2f}", number(row["score"])]
        assert cells[5:7] == [f"[{number(row['low'])}, {number(row['high'])}]", row["plateau"]]
        assert cells[7:9] == [onset(row), number(row["p_corrected"])]
        assert cells[9:11] == [number(row["selectivity"]), number(row["text_score"])]
        assert cells[11] == f"[{number(row['shuffled_low'])}, {number(row['shuffled_high'])}]"
    assert any(row["onset_layer"] is not None and row["p_corrected"] is not None for row in peaks.to_dicts())


def test_each_figure_lies_on_disk_with_its_table(tmp_path: Path) -> None:
    _, _, page = _write(tmp_path)
    section = _section()
    for probe in ("svm", "ridge"):
        stem = tmp_path / "figures" / f"items-edible-{probe}"
        assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in stem.with_suffix(".svg").read_text()
        table = pl.read_csv(stem.with_suffix(".csv"), schema=section.curves.schema)
        assert table.equals(section.curves.filter(probe=probe))
    links = [
        unquote(v) for tag, name, v in page.attributes if (tag, name) == ("a", "href") and v.startswith("figures/")
    ]
    assert len(links) == 6
    assert all((tmp_path / link).exists() for link in links)


def test_the_page_says_what_it_is_and_how_the_numbers_were_made(tmp_path: Path) -> None:
    _, html, page = _write(tmp_path)
    text = " ".join(html.split())
    assert "a reconstruction after Bogdan 2025; not its stimuli or its numbers" in text
    assert "Nothing corrects for choosing the peak" in text
    assert "1000 resamples" in text
    assert ["model.n_layers", "5"] in page.rows
    assert ["files[0].sha", HOSTILE] in page.rows


def test_a_report_holds_several_experiments_in_order(tmp_path: Path) -> None:
    _, html, _ = _write(tmp_path, _section("a", "edible", "First"), _section("b", "edible", "Second"))
    assert html.index("First</h2>") < html.index("Second</h2>")
    assert len(list((tmp_path / "figures").glob("*.svg"))) == 4


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    (first, *_), (second, *_) = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_sections_with_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each with its own name"):
        write_report(tmp_path, [_section(), _section()], {})
    with pytest.raises(ValueError, match="at least one"):
        write_report(tmp_path, [], {})


def _lines(figure: Figure) -> dict[str, Any]:
    return {str(line.get_label()): line for line in figure.axes[0].get_lines()}


def test_a_figure_draws_the_scores_of_every_site_and_its_baselines() -> None:
    curves = _section().curves
    lines = _lines(draw_curves(curves, "edible", probe="svm"))
    assert {"resid_post", "mlp_out", "embed", "chance", "words alone", "p = 0.05 over all layers"} <= set(lines)
    drawn = curves.filter(probe="svm", metric="balanced_accuracy")
    for site in ("resid_post", "mlp_out"):
        np.testing.assert_array_equal(lines[site].get_xdata(), range(5))
        np.testing.assert_array_equal(lines[site].get_ydata(), drawn.filter(site=site)["score"])
    assert set(lines["chance"].get_ydata()) == {0.5}
    assert set(lines["words alone"].get_ydata()) == set(drawn["text_score"])
    colors = {lines[site].get_color() for site in ("resid_post", "mlp_out")}
    markers = {lines[site].get_marker() for site in ("resid_post", "mlp_out")}
    assert len(colors) == len(markers) == 2


def test_layers_that_are_not_above_chance_are_hollow() -> None:
    p = pl.when(pl.col("layer") == 2).then(0.01).otherwise(0.5)
    curves = _section().curves.with_columns(p_corrected=p, test_probe=pl.lit("ridge_classifier"))
    lines = draw_curves(curves, "edible", probe="svm").axes[0].get_lines()
    hollow = [line for line in lines if line.get_markerfacecolor() == "white"]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in hollow]
    assert drawn == [[0, 1, 3, 4], [0, 1, 3, 4], []], "each site, and the legend"
    assert hollow[-1].get_label() == "p > 0.05, by ridge_classifier"


def test_the_threshold_of_another_probe_is_left_out() -> None:
    curves = _section().curves
    assert "p = 0.05 over all layers" in _lines(draw_curves(curves, "edible", probe="svm"))
    other = curves.with_columns(test_probe=pl.lit("ridge_classifier"))
    assert "p = 0.05 over all layers" not in _lines(draw_curves(other, "edible", probe="svm"))


def test_a_probe_on_length_and_frequency_is_drawn_where_there_is_one() -> None:
    curves = _section().curves
    assert "length and frequency" not in _lines(draw_curves(curves, "edible", probe="svm"))
    lines = _lines(draw_curves(curves.with_columns(surface_score=pl.lit(0.6)), "edible", probe="svm"))
    assert set(lines["length and frequency"].get_ydata()) == {0.6}


def test_a_figure_leaves_out_controls_that_were_not_run() -> None:
    bare = _section().curves.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("text_score", "shuffled_low", "threshold")
    )
    figure = draw_curves(bare, "edible", probe="svm")
    assert not {"words alone", "p = 0.05 over all layers"} & set(_lines(figure))
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert "resid_post" in labels
    assert not any(label.startswith("shuffled") for label in labels)


def test_a_figure_of_a_curve_with_undefined_layers_is_drawn() -> None:
    broken = _section().curves.with_columns(
        pl.when(pl.col("layer") == 1).then(float("nan")).otherwise(pl.col(name)).alias(name)
        for name in ("score", "se", "low", "high")
    )
    drawn = _lines(draw_curves(broken, "edible", probe="ridge", metric="pearson"))["mlp_out"].get_ydata()
    assert np.isnan(drawn[1])
    assert np.isfinite(drawn[2])


def test_a_target_that_is_missing_or_ambiguous_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probed by svm, ridge; choose one with probe="):
        draw_curves(_section().curves, "edible")
    with pytest.raises(ValueError, match="no rows of target 'heavy'"):
        draw_curves(_section().curves, "heavy")


def test_numbers_read_as_readers_expect() -> None:
    assert [number(value) for value in (0.12345, -0.5, None, float("nan"))] == ["0.123", "−0.500", "–", "undefined"]


def test_nested_provenance_is_shown_leaf_by_leaf() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}], "f": {}}
    assert list(flatten(nested)) == [("a.b", "1"), ("a.c", "[1, 2]"), ("d[0].e", "null"), ("f", "{}")]


def test_the_methods_name_the_estimator_the_folds_and_the_shuffles() -> None:
    svm, ridge = (methods(_result("edible", probe).provenance) for probe in ("svm", "ridge"))
    assert "linear support vector machine (hinge loss, unpenalised intercept, C = 1), “0” against “1”" in svm
    assert "60 stimuli in 60 groups" in svm
    assert "2 shuffles" in svm
    assert "the best of all layers and sites under 100 permutations" in svm
    assert "ridge regression (alpha = 1)" in ridge
