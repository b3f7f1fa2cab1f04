"""Running a study: stimuli, activations, fits, questions, report; every stage goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from stratoscope.client import Client
from stratoscope.errors import FingerprintChangedError, RunNotFoundError
from stratoscope.probes.sources import ChosenColumns
from stratoscope.servers import as_clients, common_card
from stratoscope.store.run import Run
from stratoscope.study.captures import HEADS, Capture, distinct, make_captures
from stratoscope.study.collecting import Bar, collect_captures
from stratoscope.study.config import Study
from stratoscope.study.fits import Columns, Fit, by_experiment, fit_main, list_fits, read_columns
from stratoscope.study.halves import fit_halves, halved_targets
from stratoscope.study.inside import fit_heads, fit_transfer, is_asked
from stratoscope.study.stimuli import ID, make_stimuli
from stratoscope.study.summary import report_study
from stratoscope.study.workspace import Workspace
from stratoscope_wire import ModelCard


def run_study(
    study: Study,
    folder: Path | None,
    out: Path,
    client: Client | Sequence[Client],
    *,
    bar: Bar,
    say: Callable[[str], None],
) -> Path:
    """Run a study against a server and write its report. The same call finishes an interrupted one.

    Parameters
    ----------
    study
    folder
        Against which the study names its tables; ``None`` for a built-in one.
    out
        Folder of the run.
    client
        Of the server; or several, of servers of the same model, which share the work.
    bar, say
        Show progress.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    StratoscopeError
        If a stage fails; what was done stays.
    """
    workspace, card = Workspace(out), common_card(as_clients(client))
    stimuli = make_stimuli(study, folder)
    captures = make_captures(study, stimuli, card)
    check_model(captures, workspace, card)
    workspace.begin(study, stimuli, card)
    collect_captures(distinct(captures), workspace, client, bar)
    say(f"collected {sum(len(capture.texts) for capture in distinct(captures)):,} texts from {card.model}")
    fit_study(study, stimuli, captures, workspace, bar=bar)
    say("fitted; drawing the report")
    return report_study(workspace)


def fit_study(
    study: Study,
    stimuli: Mapping[str, pl.DataFrame],
    captures: Mapping[str, Capture],
    workspace: Workspace,
    *,
    bar: Bar,
) -> None:
    """Fit everything a study asks for, experiment by experiment; what lies there already is not fitted again."""
    for name, fits in by_experiment(list_fits(study, stimuli)).items():
        run = Run.open(workspace.run(captures[name].name), allow_incomplete=True)
        inner = captures.get(f"{HEADS}/{name}")
        heads = None if inner is None else Run.open(workspace.run(inner.name), allow_incomplete=True)
        ids = stimuli[name][ID].to_list()
        columns, place_of = read_columns(run, ids), {stimulus: place for place, stimulus in enumerate(ids)}
        for fit in fits:
            rows = np.array([place_of[stimulus] for stimulus in fit.rows[ID]])
            fit_one(
                fit,
                ChosenColumns(columns, rows, tuple({site for site, _ in columns})),
                run,
                heads,
                study,
                workspace,
                bar,
            )


def fit_one(
    fit: Fit, columns: Columns, run: Run, heads: Run | None, study: Study, workspace: Workspace, bar: Bar
) -> None:
    """Fit one analysis, and what questions need of it.

    Parameters
    ----------
    fit
    columns
        Of its stimuli.
    run, heads
        Where these come from, and the heads where a study reads them.
    """
    fingerprint = run.card.fingerprint
    with bar(f"fitting {fit.title}") as tick:
        fit_main(fit, columns, study, workspace, fingerprint, tick)
    if (fit.experiment.name, fit.target.title) in halved_targets(study):
        with bar(f"halves of {fit.title}") as tick:
            fit_halves(fit, columns, study, workspace, fingerprint, tick)
    if is_asked(fit, study, study.transfer):
        with bar(f"between layers: {fit.title}") as tick:
            fit_transfer(fit, columns, study, workspace, fingerprint, tick)
    if heads is not None and is_asked(fit, study, study.heads):
        with bar(f"heads of {fit.title}") as tick:
            fit_heads(fit, heads, study, workspace, tick)


def check_model(captures: Mapping[str, Capture], workspace: Workspace, card: ModelCard) -> None:
    """Refuse another model before anything is written: one study's run holds one model.

    Raises
    ------
    FingerprintChangedError
        If the folder was measured on another.
    """
    for capture in distinct(captures):
        try:
            there = Run.open(workspace.run(capture.name), allow_incomplete=True).card
        except RunNotFoundError:
            continue
        if there.fingerprint != card.fingerprint:
            raise FingerprintChangedError(
                f"{workspace.path} was measured on {there.model} ({there.fingerprint}), the server has {card.model} "
                f"({card.fingerprint}): give another --out"
            )
