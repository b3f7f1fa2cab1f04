"""From fits to the report: every table, every claim, the methods in words, and the page that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stratoscope.report.prose import ORIGIN
from stratoscope.store.manifest import installed_versions
from stratoscope.store.run import Run
from stratoscope.study.captures import Capture, distinct, make_captures
from stratoscope.study.claims import claims_table
from stratoscope.study.config import Study
from stratoscope.study.curves import fit_curves
from stratoscope.study.fits import Fit, by_experiment, list_fits, told
from stratoscope.study.inside import heads_table, transfer_table
from stratoscope.study.methods import methods
from stratoscope.study.page import Book, write_page
from stratoscope.study.questions import fades_table, order_table, rise_fall_table, trade_table, turns_table
from stratoscope.study.stimuli import ID
from stratoscope.study.workspace import Workspace
from stratoscope_wire import ModelCard


def report_study(workspace: Workspace) -> Path:
    """Write tables, figures and the page of a study that was fitted.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    RunError
        If the folder holds no study, or stimuli are missing.
    """
    study, card = workspace.study, workspace.card
    stimuli = workspace.recorded_stimuli()
    fits = list_fits(study, stimuli)
    tables = study_tables(workspace, study, card, stimuli, fits)
    book = Book(
        title=study.title,
        about=study.about.strip(),
        model=card.model,
        n_layers=card.n_layers,
        tables=tables,
        experiments=[_described(study, name) for name in (e.name for e in study.experiments)],
        methods=methods(study, card),
        provenance=_provenance(workspace, study, fits),
    )
    return write_page(workspace.path, book)


def study_tables(
    workspace: Workspace, study: Study, card: ModelCard, stimuli: Mapping[str, pl.DataFrame], fits: list[Fit]
) -> dict[str, pl.DataFrame]:
    """Make every table behind the report."""
    grouped = by_experiment(fits)
    parts = [fit_curves(fit, workspace, study.statistics, card.n_layers) for fit in fits]
    tables = {
        "curves": pl.concat([curves for curves, _ in parts], how="vertical_relaxed"),
        "peaks": pl.concat([peaks for _, peaks in parts], how="vertical_relaxed"),
        "tokens": tokens_table(workspace, study, make_captures(study, stimuli, card), fits),
        "transfer": transfer_table(study, fits, workspace),
        "heads": heads_table(study, fits, workspace, card.n_heads),
        "order": order_table(study, grouped, workspace),
        "fades": fades_table(study, grouped, workspace),
        "rise_fall_rise": rise_fall_table(study, grouped, workspace),
        "coordination": turns_table(study, grouped, workspace),
        "tradeoff": trade_table(study, grouped, workspace),
    }
    return {"claims": claims_table(study, tables), **tables}


def tokens_table(workspace: Workspace, study: Study, captures: Mapping[str, Capture], fits: list[Fit]) -> pl.DataFrame:
    """Count stimuli, groups and tokens of every experiment, at every distance; tokens are the model's."""
    tokens: dict[str, int] = {}
    for capture in distinct({e.name: captures[e.name] for e in study.experiments}):
        run = Run.open(workspace.run(capture.name), allow_incomplete=True)
        if capture.read == "last":
            tokens |= dict(zip(run.stimuli()["id"], (run.positions() + 1).tolist(), strict=True))
    rows = {}
    for fit in fits:
        counts = pl.Series([tokens.get(name) for name in fit.rows[ID]], dtype=pl.Int64)
        rows[fit.experiment.name, fit.distance] = {
            "experiment": fit.experiment.name, "distance": fit.distance, "n_stimuli": fit.rows.height,
            "n_groups": fit.groups.n_unique(), "tokens_min": counts.min(), "tokens_mean": counts.mean(),
            "tokens_max": counts.max(),
        }  # fmt: skip
    return pl.DataFrame(list(rows.values()), schema_overrides={"distance": pl.Int32}, infer_schema_length=None)


def _described(study: Study, name: str) -> dict[str, Any]:
    experiment = study.experiment(name)
    return {
        "name": name, "title": experiment.title, "level": experiment.level, "question": experiment.question.strip(),
        "control": experiment.control.strip(), "targets": [target.title for target in experiment.targets],
        "controls": [target.title for target in experiment.targets if target.control],
    }  # fmt: skip


def _provenance(workspace: Workspace, study: Study, fits: list[Fit]) -> dict[str, Any]:
    notes = {fit.title: lines for fit in fits if (lines := told(fit, workspace))}
    return {
        "origin": ORIGIN, "model": workspace.card.model_dump(mode="json"), "study": study.recorded(),
        "versions": installed_versions(), "warnings": notes,
    }  # fmt: skip
