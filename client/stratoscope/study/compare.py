"""Several models on one study: curves by absolute layer and by relative depth, and what each has over its baselines."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import polars as pl
from scipy.stats import false_discovery_control

from stratoscope.errors import RunError
from stratoscope.study.claims import MAIN_METRICS
from stratoscope.study.fits import by_experiment, list_fits
from stratoscope.study.methods import methods
from stratoscope.study.order import peak_difference
from stratoscope.study.page import Comparison, write_comparison
from stratoscope.study.questions import ALPHA, experiment_curve
from stratoscope.study.workspace import Workspace

COMPARED = ("curves", "peaks", "claims", "rise_fall_rise", "coordination", "order")
ABOVE, AT = "above its baselines", "at its baselines"


def compare_studies(paths: Sequence[Path], out: Path) -> Path:
    """Compare runs of one study on several models, and write ``comparison.html``.

    Parameters
    ----------
    paths
        Folders of studies that were run to their end.
    out
        Folder of the comparison.

    Raises
    ------
    RunError
        If there are fewer than two, they are of different studies or stimuli, or two are of one model.
    """
    spaces = [Workspace(path) for path in paths]
    _check_comparable(spaces)
    names = model_names(spaces)
    study = spaces[0].study
    tables = {name: _stacked(spaces, names, name) for name in COMPARED}
    tables["baseline"] = baseline_table(tables["curves"])
    tables["depth"] = depth_table(spaces, names)
    comparison = Comparison(
        title=f"{study.title}: {len(spaces)} models",
        about=verdict_on_baselines(tables["baseline"]),
        models=[
            {"name": name, "model": s.card.model, "n_layers": s.card.n_layers, "fingerprint": s.card.fingerprint}
            for name, s in zip(names, spaces, strict=True)
        ],
        tables=tables,
        methods=methods(study, spaces[0].card)[1:],
        provenance={name: s.card.model_dump(mode="json") for name, s in zip(names, spaces, strict=True)}
        | {"study": study.recorded(), "folders": [str(path) for path in paths]},
    )
    return write_comparison(out, comparison)


def baseline_table(curves: pl.DataFrame) -> pl.DataFrame:
    """Say of every model and target whether its best layer is above its baselines.

    It is if some layer passes the permutation test that is corrected for layers and sites, with the rate of false
    discoveries among the model's targets held at 0.05 (Benjamini & Hochberg 1995, *JRSS B* 57), and if at the best
    layer the interval lies above chance and above what the words alone and the surface alone give.
    """
    main = curves.filter(pl.col("metric").is_in(MAIN_METRICS), pl.col("layer").is_not_null())
    key = ["model", "experiment", "target", "part"]
    models = pl.Enum(curves["model"].unique(maintain_order=True))
    best = main.sort("score", descending=True, nulls_last=True).unique(key, keep="first", maintain_order=True)
    least = main.group_by(key).agg(p_corrected=pl.col("p_corrected").min())
    rival = pl.max_horizontal("chance", "text_score", "surface_score")
    rows = best.drop("p_corrected").join(least, on=key, nulls_equal=True).with_columns(baseline=rival)
    judged = pl.concat([_discovered(part) for part in rows.partition_by("model", "is_control")])
    verdict = pl.when(pl.col("p_discovery").le(ALPHA) & pl.col("low").gt(pl.col("baseline"))).then(pl.lit(ABOVE))
    return (
        judged.with_columns(verdict=verdict.otherwise(pl.lit(AT)))
        .select(
            *key, "level", "is_control", "metric", best_score="score", low="low", high="high", best_site="site",
            best_layer="layer", chance="chance", text_score="text_score", surface_score="surface_score",
            baseline="baseline", p_corrected="p_corrected", p_discovery="p_discovery", verdict="verdict",
        )
        .sort(pl.col("model").cast(models), "experiment", "target", "part")
    )  # fmt: skip


def _discovered(rows: pl.DataFrame) -> pl.DataFrame:
    """Add p adjusted for the targets of one model, controls apart; no permutations count as p = 1."""
    p = rows["p_corrected"].fill_null(1.0).to_numpy()
    return rows.with_columns(p_discovery=pl.Series(false_discovery_control(p, method="bh")))


def verdict_on_baselines(baseline: pl.DataFrame) -> str:
    """Say in words how many targets of each model are above their baselines."""
    real = baseline.filter(~pl.col("is_control"))
    sentences = []
    for (model,), rows in real.group_by("model", maintain_order=True):
        above = rows.filter(verdict=ABOVE)
        named = (
            ""
            if above.is_empty()
            else f" ({', '.join(_named(row) for row in above.to_dicts()[:6])}" + (", …)" if above.height > 6 else ")")
        )
        at_baseline = "; it is at its baselines throughout" if above.is_empty() else ""
        sentences.append(
            f"{model}: {above.height} of {rows.height} targets are above their baselines{named}{at_baseline}."
        )
    return " ".join(sentences)


def depth_table(spaces: Sequence[Workspace], names: Sequence[str]) -> pl.DataFrame:
    """Compare the peaks of every experiment between every two models, in layers and in relative depth.

    Both models saw the same groups, and these are resampled together.
    """
    rows = []
    study = spaces[0].study
    curves = {
        (name, experiment): experiment_curve(fits, space, "resid_post", study.statistics)
        for name, space in zip(names, spaces, strict=True)
        for experiment, fits in by_experiment(list_fits(study, space.recorded_stimuli())).items()
    }
    for (a, left), (b, right) in combinations(zip(names, spaces, strict=True), 2):
        for experiment in study.experiments:
            first, second = curves[a, experiment.name], curves[b, experiment.name]
            depths = max(left.card.n_layers - 1, 1), max(right.card.n_layers - 1, 1)
            row: dict[str, Any] = {"experiment": experiment.name, "site": "resid_post", "model_a": a, "model_b": b}
            for unit, scales in (("layers", (1, 1)), ("depth", depths)):
                point, low, high = peak_difference(first, second, scales)
                row |= {unit: point, f"{unit}_low": low, f"{unit}_high": high}
            rows.append(row)
    return pl.DataFrame(rows)


def model_names(spaces: Sequence[Workspace]) -> list[str]:
    """Name every model; two of one name are told apart by their folders."""
    names = [space.card.model for space in spaces]
    return [
        name if names.count(name) == 1 else f"{name} ({space.path.name})"
        for name, space in zip(names, spaces, strict=True)
    ]


def _stacked(spaces: Sequence[Workspace], names: Sequence[str], table: str) -> pl.DataFrame:
    frames = [
        space.table(table).select(pl.lit(name).alias("model"), pl.all())
        for name, space in zip(names, spaces, strict=True)
    ]
    return pl.concat(frames, how="vertical_relaxed")


def _check_comparable(spaces: Sequence[Workspace]) -> None:
    if len(spaces) < 2:
        raise RunError("a comparison needs two runs or more")
    first = spaces[0]
    for space in spaces[1:]:
        if space.study != first.study:
            raise RunError(f"{first.path} and {space.path} are runs of different studies, profiles or versions of one")
        theirs, mine = space.recorded_stimuli(), first.recorded_stimuli()
        for name, frame in mine.items():
            if not frame.equals(theirs[name]):
                raise RunError(f"{first.path} and {space.path} have different texts in experiment {name}")
    prints = [space.card.fingerprint for space in spaces]
    for number, one in enumerate(prints):
        if one in prints[:number]:
            raise RunError(f"{spaces[prints.index(one)].path} and {spaces[number].path} are of one model")


def _named(row: dict[str, object]) -> str:
    part = "" if row["part"] is None else f" at {row['part']}"
    return f"{row['experiment']}/{row['target']}{part}"
