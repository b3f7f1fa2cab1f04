"""The page of a study shows every table, says what was and was not measured, loads nothing, and trusts no name."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser

from stratoscope.errors import StimulusError
from stratoscope.study.page import Book, Comparison, write_comparison, write_page
from stratoscope.study.page.forest import Estimate, draw_forest
from stratoscope.study.page.gallery import Gallery
from stratoscope.study.page.heads import best_heads
from stratoscope.study.page.heatmaps import cell_edges, draw_by, draw_varied
from stratoscope.study.page.labels import plain, verdict_kind
from stratoscope.study.page.overview import draw_overview, ranges
from stratoscope.study.page.rows import leading, mean_curves, normalised
from tests.report.chromium import browse, opened
from tests.report.study_tables import DISTANCES, EXPERIMENTS, HOSTILE, book_of, comparison_of, curves_of, tables_of

ORIGIN = "a reconstruction after Bogdan 2025; not its stimuli or its numbers"
VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Collects what a browser would load, follow and show; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        assert not self.open_tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open_tags:
            self.text += data

    def values(self, tag: str, name: str) -> list[str]:
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def book() -> Book:
    return book_of()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, book: Book) -> Path:
    return write_page(tmp_path_factory.mktemp("study"), book)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return comparison_of()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, comparison: Comparison) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison"), comparison)


@pytest.fixture(scope="module", params=["report", "compared"])
def path(request: pytest.FixtureRequest) -> Path:
    made: Path = request.getfixturevalue(request.param)
    return made


def _page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


def _small(**tables: pl.DataFrame) -> Book:
    """Return a book of one experiment, quick to draw."""
    whole = book_of(tables)
    return replace(whole, experiments=whole.experiments[:1])


def test_a_page_loads_nothing_from_elsewhere(path: Path) -> None:
    page, html = _page(path), path.read_text("utf-8")
    images = page.values("img", "src")
    assert len(images) >= 10
    assert all(image.startswith("data:image/svg+xml;base64,") for image in images)
    assert page.values("link", "href") == ["data:,"]
    assert not {"script", "iframe", "object", "embed", "source"} & set(page.tags)
    assert "@import" not in html
    assert not re.search(r"url\(", html)
    for image in images:
        svg = base64.b64decode(image.split(",", 1)[1]).decode()
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', svg))


def test_hostile_names_are_shown_and_not_run(path: Path) -> None:
    page, html = _page(path), path.read_text("utf-8")
    assert HOSTILE not in html
    assert "<b>bold</b>" not in html
    assert html.count("&lt;script&gt;") >= 3
    assert HOSTILE in page.text
    files = {file.parent for file in path.parent.rglob("*") if file.is_file()}
    assert files == {path.parent, path.parent / "figures", path.parent / "tables"}


def test_every_figure_of_a_page_lies_beside_it_as_png_and_svg(path: Path) -> None:
    page = _page(path)
    links = [unquote(link) for link in page.values("a", "href") if link.startswith("figures/")]
    assert len(links) == len(set(links)) == 2 * len(page.values("img", "src"))
    for link in links:
        content = (path.parent / link).read_bytes()
        assert content.startswith(b"\x89PNG") if link.endswith(".png") else b"<svg" in content
    assert {path.parent / link for link in links} == set((path.parent / "figures").iterdir())


def test_the_embedded_figure_is_the_one_on_disk(report: Path) -> None:
    embedded = base64.b64decode(_page(report).values("img", "src")[0].split(",", 1)[1])
    assert embedded == (report.parent / "figures" / "overview.svg").read_bytes()


@pytest.mark.parametrize("name", list(tables_of()))
def test_every_table_reads_back_equal_from_parquet_and_from_csv(report: Path, book: Book, name: str) -> None:
    table, stem = book.tables[name], report.parent / "tables" / name
    links = _page(report).values("a", "href")
    assert {f"tables/{name}.csv", f"tables/{name}.parquet"} <= set(links)
    assert pl.read_parquet(stem.with_suffix(".parquet")).equals(table)
    assert pl.read_csv(stem.with_suffix(".csv"), schema=table.schema).equals(table)


def test_the_tables_have_gaps_and_undefined_scores_to_keep(book: Book) -> None:
    curves, halves = book.tables["curves"], book.tables["halves"]
    assert curves["layer"].null_count()
    assert curves["score"].is_nan().any()
    assert halves["experiment"].to_list() == ["items", "", None]


def test_a_page_stays_small_enough_to_send(path: Path) -> None:
    assert len(list((path.parent / "figures").glob("*.svg"))) >= 25
    assert path.stat().st_size < 10e6


def test_the_page_starts_with_what_a_reader_wants_first(report: Path) -> None:
    words = _page(report).words
    parts = [
        "A functional hierarchy?",
        ORIGIN,
        "What the abstract claims, and what was measured here",
        "1. Items are read best early",
        "Overview",
        *(f"{i}. {about['title']} {about['level']}" for i, about in enumerate(book_of().experiments, 1)),
        "Experiments by layer",
        "Order of the peaks",
        "Rise, fall and rise again",
        "Coordination of neighbouring layers",
        "Trade-off between targets",
        "Methods",
        "Every number",
        "Provenance",
    ]
    at = 0
    for part in parts:
        assert part in words[at:], part
        at = words.index(part, at)


def test_every_claim_stands_with_its_words_and_its_verdict(report: Path, book: Book) -> None:
    html, words = report.read_text("utf-8"), _page(report).words
    for claim in book.tables["claims"].to_dicts():
        for column in ("claim", "paper", "measured", "verdict", "why"):
            assert claim[column] in words
    table = html[html.index('<table class="told">') : html.index("</table>")]
    assert re.findall(r'verdict (\w+)">([^<]*)<', table) == [
        *[("yes", "holds")] * 2,
        *[("open", "cannot be told"), ("yes", "holds"), ("no", "does not hold"), ("open", "too short")],
    ]


def test_the_links_of_the_contents_lead_somewhere(path: Path) -> None:
    page = _page(path)
    ids = [value for _, name, value in page.attributes if name == "id"]
    inside = [link for link in page.values("a", "href") if link.startswith("#")]
    assert len(inside) >= len(EXPERIMENTS)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in inside} <= set(ids)


def test_the_first_target_is_open_and_the_others_unfold(report: Path) -> None:
    html = report.read_text("utf-8")
    first = html[html.index('id="experiment-1"') : html.index('id="experiment-2"')]
    before, *folded = first.split('<details class="target">')
    assert '<h3>edible <span class="kind">' in before
    assert [re.findall(r"<summary>(\w+)", part)[0] for part in folded[:7]] == [
        *("animate", "metal", "wearable", "natural", "toy", "size", "weight"),
    ]
    assert all("Layer curves of" in part for part in folded[:7])


def test_the_numbers_of_a_finding_are_those_of_its_table(report: Path, book: Book) -> None:
    html = report.read_text("utf-8")
    part = html[html.index('id="order"') : html.index('id="rise_fall_rise"')]
    rows = [re.sub(r"<[^>]*>", "|", row) for row in re.findall(r"<tr>\s*<th scope=\"row\">.*?</tr>", part, re.DOTALL)]
    assert len(rows) == book.tables["order"].height == 9
    cells = [cell for cell in re.split(r"[|\s]+", rows[0]) if cell]
    assert cells == ["items", "pairs", "resid_post", "6.0", "2.0", "10.0", "holds"]


def test_absent_tables_are_said_to_be_absent(tmp_path: Path) -> None:
    words = _page(write_page(tmp_path, book_of({}))).words
    assert "The claims were not tested" in words
    assert words.count("Not tested: the study has no such table, or it is empty.") == 4
    assert words.count("This experiment has no results.") == len(EXPERIMENTS)
    assert words.count("There are no curves to draw.") == 2
    assert "Attention heads" not in words
    assert not list((tmp_path / "figures").iterdir())


def test_empty_tables_are_as_good_as_absent_ones(tmp_path: Path) -> None:
    empty = {name: table.clear() for name, table in tables_of().items()}
    words = _page(write_page(tmp_path, book_of(empty))).words
    assert words.count("Not tested: the study has no such table, or it is empty.") == 4
    assert pl.read_parquet(tmp_path / "tables" / "order.parquet").equals(empty["order"])


def test_a_study_without_one_defined_score_is_still_a_page(tmp_path: Path) -> None:
    curves = curves_of().filter(experiment="items", target="edible").with_columns(score=pl.lit(float("nan")))
    assert curves.height
    words = _page(write_page(tmp_path, _small(curves=curves))).words
    assert "no layer has a defined score" in words


def test_a_study_of_a_few_layers_is_drawn(tmp_path: Path) -> None:
    curves = curves_of().filter(pl.col("experiment") == "items", pl.col("layer").is_in([0, 10, 29]))
    page = _page(write_page(tmp_path, _small(curves=curves)))
    assert len(page.values("img", "src")) >= 10


def test_a_site_without_one_defined_score_is_no_row_of_the_maps(tmp_path: Path) -> None:
    curves = (
        curves_of()
        .filter(pl.col("experiment") == "items")
        .with_columns(score=pl.when(pl.col("site") == "resid_post").then(float("nan")).otherwise("score"))
    )
    words = _page(write_page(tmp_path, _small(curves=curves))).words
    assert "Mean over the targets of each experiment, attn_out" in words
    assert "Mean over the targets of each experiment, resid_post" not in words


def test_the_same_book_gives_the_same_bytes(tmp_path: Path) -> None:
    small = _small(curves=curves_of().filter(experiment="items", target="edible"))
    first, second = write_page(tmp_path / "a", small), write_page(tmp_path / "b", small)
    assert first.read_bytes() == second.read_bytes()


def test_tables_that_cannot_be_shown_are_refused_by_name() -> None:
    tables = tables_of()
    with pytest.raises(StimulusError, match=r"table 'order' lacks the columns \['low'\]"):
        book_of({"order": tables["order"].drop("low")})
    with pytest.raises(StimulusError, match=r"table 'x': .*\['a'\] hold lists"):
        book_of({"x": pl.DataFrame({"a": [[1]]})})
    with pytest.raises(StimulusError, match=r"table '../x': its name becomes a file"):
        book_of({"../x": pl.DataFrame({"a": [1]})})
    with pytest.raises(StimulusError, match=r"results of \['unheard'\]"):
        book_of({"curves": tables["curves"].with_columns(experiment=pl.lit("unheard"))})
    whole = comparison_of()
    with pytest.raises(StimulusError, match=r"table 'claims' names models \['other'\]"):
        replace(whole, tables={"claims": whole.tables["claims"].with_columns(model=pl.lit("other"))})


def test_a_comparison_sets_models_side_by_side(compared: Path) -> None:
    html, words = compared.read_text("utf-8"), _page(compared).words
    assert ORIGIN in words
    told = [part.split("</tr>")[0] for part in html.split("<tr>") if 'class="tally"' in part]
    tallies = [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", part)).strip() for part in told]
    assert tallies == [
        "small above its baselines : 12",
        "random &lt;twin&gt; at its baselines : 12",
        "large above its baselines : 12",
    ]
    assert words.count("Above against absolute layer, below against relative depth.") >= 20
    assert "at distance 0 alone" in words
    assert "at place 1 alone" in words


def test_models_of_30_and_80_layers_share_a_figure_on_both_axes() -> None:
    from stratoscope.study.page.curves import draw_models

    curves = comparison_of().tables["curves"]
    rows = curves.filter(experiment="items", target="edible", metric="balanced_accuracy", site="resid_post")
    figure = draw_models(rows, ["small", "random <twin>", "large"], value="score", name="score")
    layers, depths = (
        {str(line.get_label()): np.asarray(line.get_xdata()) for line in axes.get_lines()} for axes in figure.axes
    )
    assert layers["small"].max() == 29
    assert layers["large"].max() == 79
    assert depths["small"].max() == depths["large"].max() == 1


def test_a_level_is_the_mean_of_its_targets_however_often_each_was_measured() -> None:
    curves = curves_of().filter(level="context", metric="balanced_accuracy", site="resid_post")
    assert curves["distance"].n_unique() == len(DISTANCES)
    scaled = normalised(curves).filter(layer=5)
    expected = np.mean([scaled.filter(experiment=e, target=t)["normal"].mean() for e, t in scaled.select("experiment", "target").unique().rows()])  # fmt: skip  # noqa: E501
    mean = mean_curves(curves, "level").filter(layer=5)["normal"].item()
    assert mean == pytest.approx(expected)


def test_scores_are_put_on_one_scale() -> None:
    row = {"score": [0.75, 0.5, 0.3], "chance": [0.5, 0.5, 0.0], "p_corrected": [0.01, 0.5, None]}
    scaled = normalised(pl.DataFrame(row))
    assert scaled["normal"].to_list() == [0.5, 0.0, 0.3]
    assert scaled["is_above"].to_list() == [True, False, True]


def test_the_first_probe_and_metric_of_a_target_are_drawn() -> None:
    found = leading(curves_of()).select("target", "probe", "metric").unique()
    assert set(found.filter(target="edible").rows()) == {("edible", "svm", "balanced_accuracy")}
    assert set(found.filter(target="size").rows()) == {("size", "ridge", "r2")}


def test_rings_and_dots_are_left_off_where_nothing_is_above_chance() -> None:
    curves = curves_of().filter(pl.col("experiment").is_in(["items", "nothing"]))
    figure = draw_overview(curves, ["item", "control"])
    rings = [line for line in figure.axes[0].get_lines() if line.get_markersize() == 10]
    assert len(rings) == 1
    dots = draw_by(curves, "experiment", "resid_post").axes[0].get_lines()
    assert [np.asarray(dot.get_ydata()).item() for dot in dots] == [0]


def test_a_map_has_a_row_for_each_distance_and_a_panel_for_each_site() -> None:
    rows = curves_of().filter(experiment="item far back", target="edible", metric="balanced_accuracy")
    figure = draw_varied(rows, "distance")
    panels = [
        axes for axes in figure.axes if axes.collections and not axes.get_ylabel()
    ]  # no colour bar, no axis of depth
    assert figure.get_supylabel() == "distance (tokens)"
    assert len(panels) == 3
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == [str(distance) for distance in DISTANCES]


def test_cells_of_layers_that_were_skipped_reach_halfway_to_their_neighbours() -> None:
    assert cell_edges([0, 4, 6]).tolist() == [-0.5, 2, 5, 6.5]


def test_the_best_heads_come_first() -> None:
    heads = tables_of()["heads"].with_columns(pl.when(head=0).then(float("nan")).otherwise("score").alias("score"))
    best = best_heads(heads)["score"].to_list()
    assert best == sorted(best, reverse=True)
    assert best[0] == heads["score"].drop_nans().max()


def test_estimates_without_limits_or_values_are_drawn() -> None:
    rows = [Estimate("a", 1.0, None, None, "found"), Estimate("b", None, None, None, None)]
    figure = draw_forest({"x": rows})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["found", "no verdict"]


def test_verdicts_that_are_unheard_of_are_open() -> None:
    assert [verdict_kind(verdict) for verdict in ("holds", "not found", "perhaps", None)] == [
        "yes",
        "no",
        "open",
        "open",
    ]


def test_names_in_figures_are_short_and_no_mathematics() -> None:
    assert plain("$x_{1$") == r"\$x_{1\$"
    assert plain("_hidden") == "hidden"
    assert len(plain("a" * 100)) == 36


def test_ranges_of_layers_are_read() -> None:
    assert ranges("3-5, 8") == [(3, 5), (8, 8)]
    assert ranges(None) == []


def test_figures_whose_names_collide_keep_files_of_their_own(tmp_path: Path) -> None:
    gallery, figure = Gallery(tmp_path), draw_forest({"x": [Estimate("a", 1.0, None, None, "found")]})
    names = [("a-b", "c"), ("a", "b-c"), ("../" + "x" * 300,)]
    pictures = [gallery.add(figure, *name, alt="", caption="") for name in names]
    files = {unquote(picture.links["png"]) for picture in pictures}
    assert len(files) == 3
    assert all((tmp_path / file).parent == tmp_path / "figures" for file in files)
    assert all((tmp_path / file).exists() for file in files)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browse() as started:
        yield started


@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_the_whole_page_and_fetches_nothing(browser: Browser, path: Path, width: int) -> None:
    with opened(browser, path, width=width) as shown:
        shown.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        images = shown.page.evaluate(
            "Promise.all([...document.images].map(one => one.decode().then(() => one.naturalWidth * one.height)))"
        )
        assert len(images) >= 10
        assert all(size > 0 for size in images)
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        assert not shown.complaints
        assert path.as_uri() in shown.requests
        assert [url for url in shown.requests if not url.startswith("data:")] == [path.as_uri()]


def test_the_page_is_dark_where_the_reader_asks_for_it(browser: Browser, report: Path) -> None:
    shades = []
    for dark in (False, True):
        with opened(browser, report, width=1200, dark=dark) as shown:
            color = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(max(int(part) for part in re.findall(r"\d+", color)[:3]))
    assert shades[0] > 200
    assert shades[1] < 60


def test_the_browser_would_notice_a_broken_page(browser: Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<div style='width: 9000px'>wide</div><img src='gone.png'><script>nothing()</script>")
    with opened(browser, broken, width=390) as shown:
        assert shown.complaints
        assert len(shown.requests) == 2
        assert shown.page.evaluate("document.documentElement.scrollWidth") > 390


def test_a_comparison_tells_how_far_the_peaks_lie_apart(tmp_path: Path) -> None:
    page = write_comparison(tmp_path, comparison_of()).read_text("utf-8")
    assert "Where the peaks lie, between models" in page
    assert "12.00" in page
    assert "−0.11" in page
    assert "Rise, fall and rise again, model by model" not in page  # there is no such table
