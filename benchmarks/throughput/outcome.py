"""What one side of the whole job took and found."""

from dataclasses import dataclass, field
from typing import Any, Final

STAGES: Final = ("collect", "fit")

Curves = dict[str, dict[str, list[float]]]
"""By ``experiment/label`` and by column: mean score over folds of the labels as given, then of shuffled ones."""


@dataclass(slots=True)
class Outcome:
    """What one side took and found.

    Attributes
    ----------
    seconds
        By stage; the loading of the model is in neither.
    curves
        What was found.
    given
        What the plain script has to be given to do the same: texts, and for each target labels, groups and folds.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    curves: Curves = field(default_factory=dict)
    given: list[dict[str, Any]] = field(default_factory=list)
