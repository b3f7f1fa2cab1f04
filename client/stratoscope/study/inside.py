"""Looking inside: whether one layer's probe reads the other layers, and which attention heads hold a target."""

from __future__ import annotations

import json

import numpy as np
import polars as pl

from stratoscope.probes import generalize, summarise
from stratoscope.probes.provenance import versions
from stratoscope.probes.sources import ChosenColumns
from stratoscope.store.run import Run
from stratoscope.study.asked import Halves
from stratoscope.study.captures import HEADS
from stratoscope.study.config import Study
from stratoscope.study.fits import RECORD, Columns, Fit, Tick, fit_once, load_fit, read_columns, settings_of
from stratoscope.study.stimuli import ID
from stratoscope.study.workspace import Workspace, digest, write_json

TRANSFER_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("experiment", "target", "site"), pl.String),
        **dict.fromkeys(("train_layer", "test_layer"), pl.Int32),
        "score": pl.Float64,
    }
)
HEADS_SCHEMA = pl.Schema(
    {
        **dict.fromkeys(("experiment", "target"), pl.String),
        **dict.fromkeys(("layer", "head"), pl.Int32),
        **dict.fromkeys(("score", "low", "high", "p_corrected"), pl.Float64),
    }
)


def fit_transfer(fit: Fit, columns: Columns, study: Study, workspace: Workspace, fingerprint: str, tick: Tick) -> None:
    """Test every layer's probe on every layer; `transfer_table` reads it."""
    asked = study.transfer
    assert asked is not None
    statistics, rows = study.statistics, fit.rows
    chosen = ChosenColumns(columns, None, (asked.site,))
    folder = fit.folder(workspace) / "transfer"
    labels, groups = rows[fit.target.label], fit.groups
    spec = digest([fingerprint, rows[ID].to_list(), labels.to_list(), groups.to_list(), asked.site, versions(),
                   statistics.model_dump()])  # fmt: skip
    record = folder / RECORD
    if record.exists() and json.loads(record.read_text("utf-8"))["digest"] == spec:
        return
    found = generalize(
        chosen, labels.to_numpy(), groups=groups.to_numpy(), ids=rows[ID].to_list(), target=fit.target.title,
        progress=tick, **settings_of(fit.probe(statistics), statistics),
    )  # fmt: skip
    main = found.filter(pl.col("metric") == found["metric"][0])
    cells = main.group_by("train_layer", "test_layer", maintain_order=True).agg(pl.col("score").mean())
    folder.mkdir(parents=True, exist_ok=True)
    cells.write_parquet(folder / "cells.parquet")
    write_json(record, {"digest": spec, "warnings": []})


def fit_heads(fit: Fit, run: Run, study: Study, workspace: Workspace, tick: Tick) -> None:
    """Probe every head of the chosen layers; `heads_table` reads it."""
    statistics = study.statistics
    fit_once(
        fit, split_heads(read_columns(run, fit.rows[ID].to_list(), (HEADS,)), run.card.n_heads),
        fit.folder(workspace) / HEADS, run.card.fingerprint, tick,
        **settings_of(statistics.test if fit.target.kind == "classes" else statistics.values, statistics),
        controls=("shuffled",), n_shuffles=statistics.shuffles, permutations=statistics.permutations,
    )  # fmt: skip


def split_heads(columns: Columns, n_heads: int) -> Columns:
    """Cut columns of the site ``heads`` into heads.

    Returns
    -------
    mapping of (``"heads.LAYER"``, head) to float arrays of shape (n_stimuli, d_head)
    """
    return {
        (f"{HEADS}.{layer}", head): part
        for (_, layer), values in columns.items()
        for head, part in enumerate(np.split(values, n_heads, axis=1))
    }


def transfer_table(study: Study, fits: list[Fit], workspace: Workspace) -> pl.DataFrame:
    """Every layer's probe on every layer, for the targets asked about."""
    frames = [pl.DataFrame(schema=TRANSFER_SCHEMA)]
    for fit in fits:
        path = fit.folder(workspace) / "transfer" / "cells.parquet"
        if study.transfer is not None and is_asked(fit, study, study.transfer) and path.exists():
            names = {"experiment": fit.experiment.name, "target": fit.name, "site": study.transfer.site}
            cells = pl.read_parquet(path).with_columns(pl.lit(value).alias(name) for name, value in names.items())
            frames.append(cells.select(list(TRANSFER_SCHEMA)))
    return pl.concat(frames)


def heads_table(study: Study, fits: list[Fit], workspace: Workspace, n_heads: int) -> pl.DataFrame:
    """Score of every head of the chosen layers; p is corrected over all of them."""
    frames = [pl.DataFrame(schema=HEADS_SCHEMA)]
    for fit in fits:
        result = load_fit(fit, HEADS, workspace) if is_asked(fit, study, study.heads) else None
        if result is not None:
            # Heads stand where summaries have layers; their depth means nothing and is left out.
            curves = summarise(result, n_layers=n_heads, n_resamples=study.statistics.resamples).curves
            main = curves.filter(pl.col("metric") == curves["metric"][0])
            frames.append(
                main.select(
                    experiment=pl.lit(fit.experiment.name), target=pl.lit(fit.name),
                    layer=pl.col("site").str.strip_prefix(f"{HEADS}.").cast(pl.Int32), head="layer",
                    score="score", low="low", high="high", p_corrected="p_corrected",
                )
            )  # fmt: skip
    return pl.concat(frames)


def is_asked(fit: Fit, study: Study, asked: Halves | None) -> bool:
    """Whether a question is about the target of a fit."""
    return (fit.experiment.name, fit.target.title) in {(e.name, t.title) for e, t in study.chosen(asked)}
