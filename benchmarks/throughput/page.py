"""One page of plots: parts of the limits, the peers, the whole job by stage, and how cost grows."""

import html
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from throughput.figure import Figure
from throughput.results import ratios_to

OURS: Final = "stratoscope"
BLUE: Final = "#0072B2"
GREY: Final = "#999999"
PROCESSOR: Final = "by processor time"
ROW_INCHES: Final = 4.0
BAR_INCHES: Final = 0.3
STAGE_COLOURS: Final = ("#56B4E9", "#0072B2", "#009E73", "#E69F00")


def write_page(figures: Sequence[Figure], facts: Mapping[str, str], folder: Path) -> None:
    """Write ``throughput.html``, with its plots inside, and the same plots as ``throughput.png``."""
    panels = [*_limits(figures), *_engine(figures), *_job(figures), *_scaling(figures)]
    if not panels:
        return
    n_rows = (len(panels) + 1) // 2
    heights = [
        max(ROW_INCHES, *(BAR_INCHES * len(content) for _, content in panels[2 * row : 2 * row + 2]))
        for row in range(n_rows)
    ]
    drawing = Drawing(figsize=(15, sum(heights)), layout="constrained")
    grid = drawing.subplots(n_rows, 2, squeeze=False, height_ratios=heights)
    for axes, (draw, content) in zip(grid.flat, panels, strict=False):
        draw(axes, content)
    for axes in list(drawing.axes)[len(panels) :]:
        axes.remove()
    drawing.savefig(folder / "throughput.png", dpi=110)
    image = StringIO()
    drawing.savefig(image, format="svg")
    told = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>" for name, fact in facts.items())
    svg = image.getvalue()
    (folder / "throughput.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Stratoscope: throughput</title>"
        "<style>body{font:15px sans-serif;margin:2em}svg{width:100%;height:auto}dt{font-weight:bold}</style>"
        f"<h1>Throughput</h1>{svg[svg.index('<svg') :]}<dl>{told}</dl>",
        encoding="utf-8",
    )


Panel = tuple[Any, Any]


def _limits(figures: Sequence[Figure]) -> list[Panel]:
    by_name = {figure.name: figure for figure in figures}
    parts: dict[str, list[float]] = {}
    for figure in figures:
        limit = by_name.get(figure.limit)
        if limit is None or not figure.subject.startswith(OURS) or limit.stage != "limit":
            continue
        if figure.measure.endswith(PROCESSOR):
            continue
        found = [part for part in ratios_to(figure, limit) if part is not None]
        if found:
            parts[f"{figure.stage}: {_label(figure)}"] = found
    return [(_draw_limits, parts)] if parts else []


def _draw_limits(axes: Axes, parts: Mapping[str, Sequence[float]]) -> None:
    _bars(axes, parts, [BLUE] * len(parts))
    axes.axvline(1, color="black", linewidth=1)
    axes.set(title="Part of the limit measured in the same rounds", xlabel="1 is the limit")


def _engine(figures: Sequence[Figure]) -> list[Panel]:
    engine = [figure for figure in figures if figure.stage == "engine"]
    measures = dict.fromkeys(figure.measure for figure in engine if not figure.subject.startswith(OURS))
    panels: list[Panel] = [
        (_draw_engine, [figure for figure in engine if figure.measure == measure]) for measure in measures
    ]
    alone = {_label(figure): figure.values for figure in engine if figure.measure not in measures}
    return [*panels, (_draw_alone, alone)] if alone else panels


def _label(figure: Figure) -> str:
    return f"{figure.measure}{figure.subject.removeprefix(OURS)}"


def _draw_alone(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    _bars(axes, values, [BLUE] * len(values))
    axes.set(title="The engine alone, with and without sharing", xlabel="tokens/s")


def _draw_engine(axes: Axes, figures: Sequence[Figure]) -> None:
    colours = [BLUE if figure.subject.startswith(OURS) else GREY for figure in figures]
    _bars(axes, {figure.subject: figure.values for figure in figures}, colours)
    axes.set(title=f"Engine and peers: {figures[0].measure}", xlabel=figures[0].unit)


def _bars(axes: Axes, values: Mapping[str, Sequence[float]], colours: Sequence[str]) -> None:
    """Draw medians as bars, and every repetition as a point."""
    names = list(values)
    middles = [median(values[name]) for name in names]
    axes.barh(range(len(names)), middles, color=colours, height=0.65)
    for row, name in enumerate(names):
        axes.plot(values[name], [row] * len(values[name]), ".", color="black", markersize=4)
        axes.annotate(
            f" {middles[row]:.3g}", (max(values[name]), row), va="center", fontsize=8, xytext=(3, 0),
            textcoords="offset points",
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _job(figures: Sequence[Figure]) -> list[Panel]:
    job = [figure for figure in figures if figure.stage == "job"]
    numbers = sorted({figure.sizes.get("n_shuffles", 0) for figure in job})
    return [(_draw_job, [one for one in job if one.sizes.get("n_shuffles", 0) == number]) for number in numbers]


def _draw_job(axes: Axes, figures: Sequence[Figure]) -> None:
    subjects = list(dict.fromkeys(figure.subject for figure in figures))
    whole = {figure.subject: figure.median for figure in figures if figure.measure == "texts to curves"}
    stages = list(dict.fromkeys(figure.measure for figure in figures if figure.measure != "texts to curves"))
    ends = dict.fromkeys(subjects, 0.0)
    for colour, stage in zip(STAGE_COLOURS, stages, strict=False):
        mine = {figure.subject: figure.median for figure in figures if figure.measure == stage}
        axes.barh(subjects, [mine[name] for name in subjects], left=list(ends.values()), color=colour, label=stage)
        ends = {name: ends[name] + mine[name] for name in subjects}
    for row, name in enumerate(subjects):
        axes.annotate(f" {whole[name]:.3g} s", (ends[name], row), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.legend(frameon=False, fontsize=8)
    axes.set(title="The whole job: texts to layer curves", xlabel="s")
    axes.spines[["top", "right"]].set_visible(False)


def _scaling(figures: Sequence[Figure]) -> list[Panel]:
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.stage == "scale" and not figure.measure.startswith("exponent"):
            groups.setdefault(figure.measure.partition(" = ")[0], []).append(figure)
    return [(_draw_scaling, group) for group in groups.values() if varying(group)]


def varying(group: Sequence[Figure]) -> str:
    """Return the name of the size that takes most values in figures of one measure; empty if none varies."""
    names = {name for figure in group for name in figure.sizes}
    counts = {name: len({figure.sizes.get(name) for figure in group}) for name in sorted(names)}
    most = max(counts, key=lambda name: counts[name], default="")
    return most if counts.get(most, 0) > 1 else ""


def _draw_scaling(axes: Axes, group: Sequence[Figure]) -> None:
    name = varying(group)
    for subject in dict.fromkeys(figure.subject for figure in group):
        mine = sorted((figure for figure in group if figure.subject == subject), key=lambda one: one.sizes.get(name, 0))
        axes.plot([one.sizes.get(name, 0) for one in mine], [one.median for one in mine], "o-", label=subject)
    axes.set(
        title=group[0].measure.partition(" = ")[0], xlabel=name, ylabel=group[0].unit, xlim=(0, None), ylim=(0, None)
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
