"""Probing a run: from a label column of its stimuli to a result on disk."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stratoscope.probes import SweepResult, save, sweep
from stratoscope.store.run import Run
from stratoscope.targets import Target

CHECKPOINTS: Final = "results/checkpoints"
"""Folder in a run that keeps finished columns until their sweep is saved."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How a target is probed.

    Attributes
    ----------
    selector
        Label of the selector whose rows are used; ``None`` if the run has only one.
    sites
        Sites to probe; ``None`` for all of the run.
    n_folds, n_shuffles, seed
        Outer folds, shuffled label vectors, and the seed of both.
    n_jobs
        Columns fitted at the same time; -1 for one per core.
    n_permutations
        Of the permutation test; 0 for none.
    types
        Column of what a memorising probe would recognise, for the type-consistent control task; ``None`` for none.
    """

    selector: str | None = None
    sites: tuple[str, ...] | None = None
    n_folds: int = 5
    n_shuffles: int = 5
    seed: int = 0
    n_jobs: int = -1
    n_permutations: int = 0
    types: str | None = None


def probe_run(
    run: Run,
    target: Target,
    settings: ProbeSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    out: Path | None = None,
) -> SweepResult:
    """Fit a probe on every column of a run and save the result under ``RUN/results``, or under ``OUT/results``.

    Stimuli whose label is missing are left out; the result's provenance says how many. Every finished column is kept on
    disk until the result is saved: the same call goes on where an interrupted one stopped.

    Parameters
    ----------
    progress
        Called with the number of columns done and in all.
    out
        Folder of the results; by default the run's, needed if it lies in an object store.

    Raises
    ------
    stratoscope.probes.DesignError
        If the run lacks a column or site, no stimulus has the label, or labels and groups cannot carry the probe.
    stratoscope.probes.ActivationsError
        If a column of activations cannot be probed.
    """
    chosen = settings or ProbeSettings()
    folder = run.path if out is None else out
    texts = ("text",) if not run.stimuli()["text"].null_count() else ()
    result = sweep(
        run,
        target.label,
        groups=target.group,
        probe=target.probe,
        cv=chosen.n_folds,
        controls=("shuffled", *texts, *(("type",) if chosen.types else ())),
        n_shuffles=chosen.n_shuffles,
        permutations=chosen.n_permutations,
        types=chosen.types,
        selector=chosen.selector,
        sites=chosen.sites,
        n_jobs=chosen.n_jobs,
        seed=chosen.seed,
        checkpoint=folder / CHECKPOINTS,
        progress=progress,
    )
    save(result, folder)
    shutil.rmtree(folder / CHECKPOINTS)
    return result
