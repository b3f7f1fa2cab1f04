"""One experiment of a report: what was asked, and the curves and peaks that answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stratoscope.probes import SweepResult, summarise


@dataclass(frozen=True)
class Section:
    """One experiment or run.

    name : short name, used for files
    title, description : for readers; plain text
    curves, peaks : of `summarise`, of any number of targets
    probes : provenance of each sweep, for the methods paragraph
    provenance : nested JSON of the run, such as its manifest
    """

    name: str
    title: str
    description: str
    curves: pl.DataFrame
    peaks: pl.DataFrame
    probes: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def panels(self) -> list[tuple[str, str]]:
        """(target, probe) of every figure, in order."""
        return list(self.curves.select("target", "probe").unique(maintain_order=True).iter_rows())


def make_section(
    name: str,
    title: str,
    description: str,
    results: Iterable[SweepResult],
    *,
    n_layers: int,
    provenance: Mapping[str, Any] | None = None,
) -> Section:
    """Summarise sweeps of one model into a section; `n_layers` is the model's."""
    kept = [one for result in results for one in result.split()]
    summaries = [summarise(result, n_layers=n_layers) for result in kept]
    return Section(
        name,
        title,
        description,
        curves=pl.concat([summary.curves for summary in summaries], how="vertical_relaxed"),
        peaks=pl.concat([summary.peaks for summary in summaries]),
        probes=tuple(result.provenance for result in kept),
        provenance=provenance or {},
    )
