"""What a report is made from: tidy tables of one model, or of several, and the words that go with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from stratoscope.errors import StimulusError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")
_CURVE: Final = (
    *("experiment", "target", "probe", "metric", "site", "layer", "n_layers"),
    *("score", "low", "high", "p_corrected", "chance"),
)
_PEAK: Final = ("experiment", "target", "probe", "metric", "site", "peak_layer", "peak_set", "score")
_VERDICT: Final = ("experiment", "target", "site", "verdict")
_CLAIM: Final = ("number", "claim", "paper", "measured", "verdict", "why")

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "curves": (*_CURVE, "level", "distance", "place"),
    "peaks": (*_PEAK, "level", "distance", "place"),
    "tokens": ("experiment", "distance", "n_stimuli", "n_groups", "tokens_min", "tokens_mean", "tokens_max"),
    "transfer": ("experiment", "target", "site", "train_layer", "test_layer", "score"),
    "heads": ("experiment", "target", "layer", "head", "score", "low", "high", "p_corrected"),
    "rise_fall_rise": (
        *_VERDICT,
        *("peak1", "trough", "peak2", "fall", "fall_low", "fall_p", "rise", "rise_low", "rise_p"),
    ),
    "coordination": (
        *_VERDICT,
        *("reliability", "reliability_p", "lag1", "lag1_null_low", "lag1_null_high", "lag1_p"),
    ),
    "tradeoff": ("site", "target_a", "target_b", "correlation", "null_low", "null_high", "p", "verdict"),
    "order": ("earlier", "later", "site", "difference", "low", "high", "verdict"),
    "claims": _CLAIM,
}
"""Columns that the page reads, by table; a table may hold more."""

COMPARISON_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "curves": ("model", *COLUMNS["curves"]),
    "peaks": ("model", *COLUMNS["peaks"]),
    "claims": ("model", *_CLAIM),
    "baseline": (
        *("model", "experiment", "target", "best_score", "best_site", "best_layer"),
        *("chance", "text_score", "p_corrected", "p_discovery", "verdict"),
    ),
    "depth": (
        *("experiment", "site", "model_a", "model_b", "layers", "layers_low", "layers_high"),
        *("depth", "depth_low", "depth_high"),
    ),
    "rise_fall_rise": ("model", *COLUMNS["rise_fall_rise"]),
    "coordination": ("model", *COLUMNS["coordination"]),
}
"""Columns that the page of a comparison reads, by table."""


@dataclass(frozen=True)
class Book:
    """The study of one model.

    title, about : plain text
    model : short name
    n_layers : of the model, whichever layers were probed
    tables : tidy tables by name; those of `COLUMNS` are shown, all are written and linked; any may be absent or empty
    experiments : ``name, title, level, question, control, targets`` of each, in the order of the page
    methods : paragraphs of plain text
    provenance : nested JSON

    Raises
    ------
    StimulusError
        If a table lacks a column, cannot be written as CSV, or has results of an experiment that is not described.
    """

    title: str
    about: str
    model: str
    n_layers: int
    tables: Mapping[str, pl.DataFrame]
    experiments: Sequence[Mapping[str, Any]]
    methods: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tables(self.tables, COLUMNS)
        names = [one["name"] for one in self.experiments]
        if len(set(names)) < len(names):
            raise StimulusError(f"experiments {names}: each needs a name of its own")
        for table in ("curves", "peaks", "transfer", "heads"):
            unknown = set(self.table(table)["experiment"]) - set(names) if not self.table(table).is_empty() else set()
            if unknown:
                raise StimulusError(f"table {table!r} has results of {sorted(unknown)}; describe them in experiments")

    def table(self, name: str) -> pl.DataFrame:
        """Return a table; an absent one is empty."""
        return self.tables.get(name, pl.DataFrame())


@dataclass(frozen=True)
class Comparison:
    """The same study of several models.

    title, about : plain text
    models : ``name, model, n_layers, fingerprint`` of each; the column ``model`` of the tables holds ``name``
    tables : ``curves``, ``peaks``, ``claims`` and ``baseline``, see `COMPARISON_COLUMNS`
    methods : paragraphs of plain text
    provenance : nested JSON

    Raises
    ------
    StimulusError
        If a table lacks a column, cannot be written as CSV, or names a model that is not listed.
    """

    title: str
    about: str
    models: Sequence[Mapping[str, Any]]
    tables: Mapping[str, pl.DataFrame]
    methods: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tables(self.tables, COMPARISON_COLUMNS)
        names = [one["name"] for one in self.models]
        if len(set(names)) < len(names):
            raise StimulusError(f"models {names}: each needs a name of its own")
        for name, table in self.tables.items():
            columns = [column for column in ("model", "model_a", "model_b") if column in table.columns]
            named = {one for column in columns for one in table[column]}
            if unknown := named - set(names):
                raise StimulusError(f"table {name!r} names models {sorted(unknown)}; list them in models")

    def table(self, name: str) -> pl.DataFrame:
        """Return a table; an absent one is empty."""
        return self.tables.get(name, pl.DataFrame())


def check_tables(tables: Mapping[str, pl.DataFrame], columns: Mapping[str, Sequence[str]]) -> None:
    """Raise StimulusError unless every table can be shown and written; an empty one may lack its columns."""
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            raise StimulusError(f"table {name!r}: its name becomes a file; use up to 61 of a-z, 0-9 and _")
        missing = [column for column in columns.get(name, ()) if column not in table.columns]
        if missing and not table.is_empty():
            raise StimulusError(f"table {name!r} lacks the columns {missing}")
        nested = [column for column, dtype in table.schema.items() if dtype.is_nested()]
        if nested:
            raise StimulusError(
                f"table {name!r}: the columns {nested} hold lists, which CSV cannot; write them as text"
            )
