"""What can go wrong around a probe.

ProbeError (StratoscopeError, ValueError)
├── DesignError       labels, groups, folds or texts that cannot carry an honest probe
├── ActivationsError  a column of activations of the wrong shape, type or content
└── ResultsError      results on disk that are missing, foreign or torn

GridEdgeWarning (UserWarning)  the chosen alpha sits at an edge of its grid
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


class GridEdgeWarning(UserWarning):
    """The chosen hyper-parameter sits at an edge of its grid, so a better one may lie outside."""
