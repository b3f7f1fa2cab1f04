"""Linear probes, layer by layer: what can be read from each column of activations, and what chance would give.

Start at `sweep`; `summarise` turns its result into layer curves and peaks, `save` and `load` keep it on disk.
"""

from stratoscope.probes.errors import ActivationsError, DesignError, GridEdgeWarning, ProbeError, ResultsError
from stratoscope.probes.folds import assign_folds
from stratoscope.probes.results import load, save
from stratoscope.probes.summary import Summary, summarise
from stratoscope.probes.sweep import SweepResult, sweep

__all__ = [
    "ActivationsError",
    "DesignError",
    "GridEdgeWarning",
    "ProbeError",
    "ResultsError",
    "Summary",
    "SweepResult",
    "assign_folds",
    "load",
    "save",
    "summarise",
    "sweep",
]
