"""One measured figure: a row of the result file."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, how often, and next to what.

    Attributes
    ----------
    stage
        Part of the way: ``engine``, ``capture``, ``wire``, ``receive``, ``write``, ``read``, ``probe``, ``job``,
        ``limit``, ``memory``, ``scale``.
    subject
        Who did it: ``stratoscope``, a peer's name, or the limit's.
    measure
        What was counted, in words.
    unit
        Of `values`.
    values
        One for each repetition, in the order of the rounds: entries at one index of several figures were measured
        side by side.
    sizes
        Of the work: ``n_stimuli``, ``n_tokens``, ``n_layers``, ``n_columns``, ``d_model``, ``n_bytes``.
    limit
        Subject and measure of the figure that this one is held against, as ``subject/measure``; empty for none.
    """

    stage: str
    subject: str
    measure: str
    unit: str
    values: tuple[float, ...]
    sizes: Mapping[str, float] = field(default_factory=dict)
    limit: str = ""

    @property
    def median(self) -> float:
        """Of the repetitions."""
        return statistics.median(self.values)

    @property
    def name(self) -> str:
        """How another figure refers to this one."""
        return f"{self.subject}/{self.measure}"

    def as_row(self) -> dict[str, Any]:
        """Return what is written down."""
        row = asdict(self)
        sizes = row.pop("sizes")
        return {**row, "values": list(self.values), "median": self.median, **sizes}


def ratio(figure: Figure, other: Figure) -> float:
    """Return the median of the ratios of what was measured side by side.

    Raises
    ------
    ValueError
        If the two were not measured in the same rounds.
    """
    return statistics.median(ratios(figure, other))


def ratios(figure: Figure, other: Figure) -> Sequence[float]:
    """Return the ratio of each round."""
    if len(figure.values) != len(other.values):
        raise ValueError(f"{figure.name} has {len(figure.values)} rounds and {other.name} {len(other.values)}")
    return [mine / theirs for mine, theirs in zip(figure.values, other.values, strict=True)]
