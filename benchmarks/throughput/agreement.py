"""Whether the plain script finds what our side finds."""

from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np

from stratoscope import Run
from stratoscope.probes.svm import SVM_TOLERANCE
from throughput.ours import SITES
from throughput.outcome import Curves, Outcome
from throughput.peer import PeerError
from throughput.plain import SCRIPT, plain_order

CHECKED: Final = (0, 15)
"""Layers at which the two sides' statistics are held against each other on the very same states."""

SAME: Final = {"svm": 0.01, "ridge": 1e-6}
"""Largest difference of such a score. LIBSVM ends near the optimum, so that a held-out row or two may change sides."""

NEAR: Final = 0.03
"""Largest mean difference of a curve's scores where each side collects: states in bfloat16 differ by rounding."""


def check_curves(mine: Curves, theirs: Curves) -> None:
    """Refuse curves that are further apart than the rounding of bfloat16 explains.

    Raises
    ------
    PeerError
        Naming the target.
    """
    if mine.keys() != theirs.keys():
        raise PeerError(f"targets differ: {sorted(mine)} and {sorted(theirs)}")
    for target, curve in mine.items():
        if curve.keys() != theirs[target].keys():
            raise PeerError(f"{target}: the columns differ")
        apart = np.abs([np.subtract(scores, theirs[target][column]) for column, scores in curve.items()])
        print(f"{target}: curves apart by {apart.max():.1e} at most, {apart.mean():.1e} on average", flush=True)
        if not apart.mean() <= NEAR:
            raise PeerError(f"{target}: the plain script's curve is {apart.mean():.1e} from ours on average")


def check_statistics(outcome: Outcome, runs: Path) -> None:
    """Hold the plain script's statistics, on the states that our side stored, against ours on a few columns.

    Raises
    ------
    PeerError
        If a score differs by more than the solvers' tolerance.
    """
    script = import_module(SCRIPT)
    order = plain_order(outcome.given, SVM_TOLERANCE)
    for given in outcome.given:
        activations = Run.open(runs / given["name"]).activations()
        columns = {f"{site}.{layer}": np.asarray(activations[site, layer]) for site in SITES for layer in CHECKED}
        for target in given["targets"]:
            curve = outcome.curves[f"{given['name']}/{target['label']}"]
            for column, scores in script.fit(columns, target, order).items():
                if not np.allclose(scores, curve[column], rtol=0, atol=SAME[target["probe"]]):
                    raise PeerError(
                        f"{target['label']} at {column}: {scores} by the plain script, {curve[column]} by ours"
                    )
