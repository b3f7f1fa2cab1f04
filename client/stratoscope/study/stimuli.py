"""The stimuli of a study: every experiment's texts with labels and groups, made from its tables by its designs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from stratoscope.errors import StimulusError
from stratoscope.stimuli.fields import field_series
from stratoscope.stimuli.files import read_rows
from stratoscope.stimuli.spans import PREFIX
from stratoscope.stimuli.table import StimulusTable
from stratoscope.study.catalogue import BUILTIN
from stratoscope.study.config import Experiment, Study, Target
from stratoscope.study.designs.context import at_distance
from stratoscope.study.designs.documents import documents
from stratoscope.study.designs.lists import lists
from stratoscope.study.designs.pairs import analogies, repaired
from stratoscope.study.designs.templates import check_columns, filled
from stratoscope.study.texts import Analogies, AtDistance, Documents, Filled, Lists, Repaired, Rows

ID = "stimulus_id"


def make_stimuli(study: Study, folder: Path | None) -> dict[str, pl.DataFrame]:
    """Make the stimuli of every experiment.

    Parameters
    ----------
    study
    folder
        Against which a study's own tables are named; ``None`` for a built-in study.

    Returns
    -------
    mapping of experiments' names to frames
        ``stimulus_id`` (by content: equal texts of two experiments have one id), ``text``, ``group`` and labels.

    Raises
    ------
    StimulusError
        If a table or design cannot be used, or an experiment lacks a column that it names.
    """
    made: dict[str, pl.DataFrame] = {}
    # Texts at a distance are made of the texts of others.
    for experiment in sorted(study.experiments, key=lambda one: isinstance(one.texts, AtDistance)):
        frame = _texts(study, experiment, made, folder)
        check_columns(frame, _named(experiment), f"experiment {experiment.name}")
        frame = _with_ids(frame, experiment.name, spans=":" in (experiment.read or study.reading.read))
        made[experiment.name] = _few_groups(frame, experiment.group, study.n_groups)
    return {experiment.name: made[experiment.name] for experiment in study.experiments}


def rows_of(frame: pl.DataFrame, target: Target, where: object = None) -> pl.DataFrame:
    """Return the rows that a target is about: labelled, and with the values it asks for.

    Parameters
    ----------
    frame
        Of an experiment.
    target
    where
        Value of the column ``target.by``, if the target has one.
    """
    conditions = [pl.col(target.label).is_not_null()]
    conditions += [pl.col(name).eq(pl.lit(value)) for name, value in target.where.items()]
    if target.by is not None:
        conditions.append(pl.col(target.by).eq(pl.lit(where)))
    return frame.filter(conditions)


def parts_of(frame: pl.DataFrame, target: Target) -> list[object]:
    """Return the values of ``target.by`` that make an analysis of their own; ``[None]`` if there is none."""
    return [None] if target.by is None else frame[target.by].drop_nulls().unique().sort().to_list()


def read_table(word: str, folder: Path | None) -> pl.DataFrame:
    """Read a table of a study: a file beside it, or by its bare name one that comes with the package.

    Raises
    ------
    StimulusError
        If there is none, or it cannot be read.
    """
    tables = files("stratoscope.study").joinpath(BUILTIN, "tables")
    if not Path(word).suffix:
        with as_file(tables.joinpath(f"{word}.csv")) as path:
            if not path.is_file():
                names = sorted(Path(entry.name).stem for entry in tables.iterdir() if entry.name.endswith(".csv"))
                raise StimulusError(f"there is no built-in table {word!r}; there are {', '.join(names)}")
            return _frame(path)
    return _frame((folder or Path()) / word)


def _frame(path: Path) -> pl.DataFrame:
    rows, _ = read_rows(path)
    if not rows:
        raise StimulusError(f"{path.name} holds no rows")
    try:
        return pl.DataFrame([field_series(name, [row[name] for row in rows]) for name in rows[0]])
    except (ValueError, OverflowError) as error:
        raise StimulusError(f"{path.name}: {error}") from None


def _texts(study: Study, experiment: Experiment, made: dict[str, pl.DataFrame], folder: Path | None) -> pl.DataFrame:
    match experiment.texts:
        case Rows(table=table):
            return read_table(table, folder)
        case Filled(table=table, template=template, join=join):
            rows = read_table(table, folder)
            return filled(rows if join is None else _joined(rows, read_table(join, folder), join), template=template)
        case Repaired(table=table, template=template, seed=seed):
            return repaired(read_table(table, folder), template=template, seed=seed)
        case Analogies(table=table, template=template, seed=seed):
            return analogies(read_table(table, folder), template=template, seed=seed)
        case Documents(table=table, seed=seed):
            return documents(read_table(table, folder), seed=seed)
        case Lists(table=table, label=label, length=length, template=template, seed=seed):
            return lists(read_table(table, folder), label=label, length=length, template=template, seed=seed)
        case AtDistance(of=of, filler=filler, distances=distances, where=where, n_groups=n_groups, seed=seed):
            group = study.experiment(of).group
            check_columns(made[of], where, f"experiment {experiment.name}, where")
            chosen = made[of].filter(pl.lit(value=True), *(pl.col(name).eq(pl.lit(v)) for name, v in where.items()))
            base = _few_groups(chosen, group, n_groups).drop(ID, *DERIVED).with_columns(group=pl.col(group))
            return at_distance(base, _sentences(filler, folder), distances=distances, seed=seed)


def _joined(rows: pl.DataFrame, other: pl.DataFrame, name: str) -> pl.DataFrame:
    shared = [column for column in rows.columns if column in other.columns]
    if len(shared) != 1:
        raise StimulusError(f"join {name!r}: the tables share the columns {shared}; they must share exactly one")
    if other[shared[0]].is_duplicated().any():
        raise StimulusError(f"join {name!r}: its column {shared[0]!r} holds a value more than once")
    return rows.join(other, on=shared, how="left", maintain_order="left")


def _sentences(word: str, folder: Path | None) -> list[str]:
    table = read_table(word, folder)
    check_columns(table, ["sentence"], f"filler {word!r}")
    return table["sentence"].to_list()


def _named(experiment: Experiment) -> list[str]:
    """Columns that an experiment names."""
    named = ["text", experiment.group, *(name for name in experiment.surface if name not in DERIVED)]
    for target in experiment.targets:
        named += [target.label, *target.where, *(name for name in (target.group, target.by, target.types) if name)]
    return list(dict.fromkeys(named))


def _with_ids(frame: pl.DataFrame, name: str, *, spans: bool) -> pl.DataFrame:
    """Name stimuli by content, after the checks that any stimulus file goes through.

    Spans are content: they are kept only where they are read, so that equal texts stay equal stimuli.
    """
    spanned = [column for column in frame.columns if column.startswith(PREFIX)]
    content = frame.select("text", *(spanned if spans else ()))
    table = StimulusTable.from_frame(content, f"experiment {name}")
    twice = [text for text, many in zip(frame["text"], frame["text"].is_duplicated(), strict=True) if many]
    if twice:
        raise StimulusError(
            f"experiment {name}: the text {twice[0]!r} occurs more than once; each text must be its own"
        )
    derived = [pl.Series(column, [count(text) for text in frame["text"]]) for column, count in DERIVED.items()]
    plain = frame.drop("id", *DERIVED, *(() if spans else spanned), strict=False)
    return plain.select(pl.Series(ID, table.ids), pl.all()).with_columns(derived)


DERIVED: Final[Mapping[str, Callable[[str], int]]] = {"n_characters": len, "n_words": lambda text: len(text.split())}
"""Columns that every experiment has for its surface baseline."""


def _few_groups(frame: pl.DataFrame, group: str, n_groups: int | None) -> pl.DataFrame:
    """Keep some groups, drawn by a fixed seed."""
    names = frame[group].unique().sort().to_list()
    if n_groups is None or len(names) <= n_groups:
        return frame
    chosen = np.random.default_rng(0).choice(len(names), n_groups, replace=False)
    return frame.filter(pl.col(group).is_in([names[number] for number in chosen]))
