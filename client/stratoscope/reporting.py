"""Reporting runs: what their results say, as tables and as one page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stratoscope.experiments import EXPERIMENTS, Experiment, load_experiment
from stratoscope.probes import Summary, SweepResult, load, summarise
from stratoscope.report import Section, make_section, write_report
from stratoscope.store.run import Run
from stratoscope_wire import __version__


def summarise_result(result: SweepResult, run: Run) -> Summary:
    """Return curves and peaks of a result; see `stratoscope.probes.summarise`."""
    return summarise(result, n_layers=run.card.n_layers)


def report_runs(paths: Sequence[Path], out: Path) -> Path:
    """Write one report on everything that was probed in some runs.

    Parameters
    ----------
    paths
        Folders of runs, in the order of the report's sections.
    out
        Folder that receives ``report.html`` and ``figures/``.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    RunError
        If a folder holds no usable run.
    stratoscope.probes.ResultsError
        If a run has not been probed yet.
    """
    sections = [_section(Run.open(path, allow_incomplete=True)) for path in paths]
    return write_report(out, sections, {"report": {"stratoscope": __version__, "runs": [str(path) for path in paths]}})


def _section(run: Run) -> Section:
    experiment = _built_in(run)
    return make_section(
        run.path.name,
        experiment.title if experiment else run.path.name,
        experiment.description if experiment else f"{run.stimuli().height} stimuli.",
        load(run.path).values(),
        n_layers=run.card.n_layers,
        provenance=_manifest(run),
    )


def _built_in(run: Run) -> Experiment | None:
    """Return the built-in experiment whose texts these are, if they are one's."""
    texts = set(run.stimuli()["text"])
    return next((one for one in EXPERIMENTS if set(load_experiment(one.name).texts) == texts), None)


def _manifest(run: Run) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((run.path / "manifest.json").read_text(encoding="utf-8"))
    return manifest
