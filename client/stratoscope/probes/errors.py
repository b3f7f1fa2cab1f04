"""What can go wrong around a probe, and what deserves a second look.

ProbeError (StratoscopeError, ValueError)
├── DesignError       labels, groups, folds or texts that cannot carry an honest probe
├── ActivationsError  a column of activations of the wrong shape, type or content
└── ResultsError      results on disk that are missing, foreign or torn

ProbeWarning (UserWarning)
├── GridEdgeWarning        the chosen hyper-parameter sits at an edge of its grid
├── ConstantFeatureWarning a column holds features that never vary
├── ControlWarning         a control task that no probe could solve, so selectivity says nothing
└── PermutationWarning     permutations that are too few, or only nearly exchangeable
"""

from __future__ import annotations

from stratoscope.errors import StratoscopeError


class ProbeError(StratoscopeError, ValueError):
    """Base of every error raised by ``stratoscope.probes``."""


class DesignError(ProbeError):
    """Labels, groups, folds or texts that cannot carry an honest probe."""


class ActivationsError(ProbeError):
    """A column of activations of the wrong shape, type or content."""


class ResultsError(ProbeError):
    """Results on disk that are missing, foreign or torn."""


class ProbeWarning(UserWarning):
    """Base of every warning of ``stratoscope.probes``."""


class GridEdgeWarning(ProbeWarning):
    """The chosen hyper-parameter sits at an edge of its grid, so a better one may lie outside."""


class ConstantFeatureWarning(ProbeWarning):
    """A column holds features that never vary; they carry nothing, and may mean that the capture is wrong."""


class ControlWarning(ProbeWarning):
    """No type of the control task is in two folds: no probe can solve it, and selectivity says nothing."""


class PermutationWarning(ProbeWarning):
    """Permutations are too few for the level asked for, or move labels between groups of different size."""
