"""Linear probes, layer by layer: what can be read from each column of activations, and what chance would give.

Start at `sweep`; `summarise` turns its result into layer curves and peaks, `significance` holds it against
permutations, `generalize` tests every layer's probe on every other, `save` and `load` keep results on disk.
"""

from stratoscope.probes.errors import (
    ActivationsError,
    ConstantFeatureWarning,
    ControlWarning,
    DesignError,
    GridEdgeWarning,
    PermutationWarning,
    ProbeError,
    ProbeWarning,
    ResultsError,
)
from stratoscope.probes.estimators import PROBES, Probe, Settings
from stratoscope.probes.folds import assign_folds
from stratoscope.probes.generalize import generalize
from stratoscope.probes.results import load, save
from stratoscope.probes.significance import significance
from stratoscope.probes.sklearn_api import RidgeProbe, RidgeProbeClassifier, SVMProbe
from stratoscope.probes.summary import Summary, summarise
from stratoscope.probes.sweep import SweepResult, sweep

__all__ = [
    "PROBES",
    "ActivationsError",
    "ConstantFeatureWarning",
    "ControlWarning",
    "DesignError",
    "GridEdgeWarning",
    "PermutationWarning",
    "Probe",
    "ProbeError",
    "ProbeWarning",
    "ResultsError",
    "RidgeProbe",
    "RidgeProbeClassifier",
    "SVMProbe",
    "Settings",
    "Summary",
    "SweepResult",
    "assign_folds",
    "generalize",
    "load",
    "save",
    "significance",
    "summarise",
    "sweep",
]
