"""Related pairs from files of others: BATS, the relations of LRE, SemEval-2012 task 2, and any CSV.

None of them comes with Stratoscope. Every reader gives a frame with ``relation``, ``first`` and ``second``, in the
order of the files' names and lines, and changes nothing of the words but what it says. Nouns recur in these sets; the
designs of pairs want every noun in one pair, which `stratoscope.study.designs.pair_tables.disjoint` sees to.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import polars as pl

from stratoscope.errors import StimulusError
from stratoscope.stimuli.fields import typed_cells
from stratoscope.store.durable import replace_file

BATS_NAME: Final = re.compile(r"[IDEL][0-9]{2} \[.+\]\.txt")
SEMEVAL_NAME: Final = re.compile(r"(GoldRatings|Phase2AnswersScaled)-([0-9]{1,2}[a-z])\.txt")
SEMEVAL_LINE: Final = re.compile(r'(-?[0-9]+(?:\.[0-9]+)?)\s+"([^":]+):([^":]+)"')
COLUMNS: Final = ("relation", "first", "second")


def read_bats(folder: str | Path) -> pl.DataFrame:
    """Read the Bigger Analogy Test Set, version 3.0 (Gladkova, Drozd & Matsuoka 2016, NAACL SRW).

    A line holds a word, a tab and its answers, separated by slashes; the first answer is taken. Underscores become
    blanks.

    Parameters
    ----------
    folder : str or Path
        With files such as ``1_Inflectional_morphology/I01 [noun - plural_reg].txt``, at any depth.

    Returns
    -------
    polars.DataFrame
        ``relation`` (the file's name without its suffix), ``first``, ``second``.

    Raises
    ------
    StimulusError
        If there are no such files, or one cannot be read; naming file and line.
    """
    rows = []
    for path in _found(folder, BATS_NAME, "BATS files such as 'I01 [noun - plural_reg].txt'"):
        for line, place in _lines(path):
            # A few lines of the set have blanks in place of the tab.
            word, *rest = line.split("\t") if "\t" in line else line.split(maxsplit=1)
            answer = rest[0].split("/")[0].strip() if len(rest) == 1 else ""
            if not word.strip() or not answer:
                raise StimulusError(f"{place}: {line!r} is not a word, a tab and answers separated by slashes")
            rows.append((path.stem, *(part.strip().replace("_", " ") for part in (word, answer))))
    return pl.DataFrame(rows, dict.fromkeys(COLUMNS, pl.String), orient="row")


def read_lre(path: str | Path) -> pl.DataFrame:
    """Read relations in the JSON of Hernandez et al. 2023 (arXiv 2308.09124; github.com/evandez/relations, ``data``).

    Parameters
    ----------
    path : str or Path
        One ``.json`` file, or a folder with such files at any depth. A file holds ``name`` and ``samples``, a list of
        objects with ``subject`` and ``object``.

    Returns
    -------
    polars.DataFrame
        ``relation`` (``name``), ``first`` (``subject``), ``second`` (``object``).

    Raises
    ------
    StimulusError
        If there is no such file, or one cannot be read; naming file and line, or file and sample.
    """
    path = Path(path)
    paths = [path] if path.is_file() else _found(path, re.compile(r".+\.json"), "JSON files of relations")
    rows: list[tuple[str, str, str]] = []
    source: dict[str, Path] = {}
    for file in paths:
        name, samples = _relation(file)
        if (other := source.setdefault(name, file)) != file:
            raise StimulusError(f"{file} and {other} both hold the relation {name!r}; keep one of them")
        rows += [(name, *_sample(sample, f"{file}, sample {at}")) for at, sample in enumerate(samples, start=1)]
    return pl.DataFrame(rows, dict.fromkeys(COLUMNS, pl.String), orient="row")


def read_semeval2012(folder: str | Path) -> pl.DataFrame:
    """Read the rated pairs of SemEval-2012 task 2 (Jurgens, Mohammad, Turney & Holyoak 2012).

    A line holds a rating and a pair, ``54.0 "flower:tulip"``; lines that begin with ``#`` are comments. The rating says
    how typical the pair is of the relation: by MaxDiff, from -100 (always chosen as least typical) to 100. The designs
    of pairs want strengths above 0; shift them first, for example by ``(pl.col("strength") + 101) / 201``.

    Parameters
    ----------
    folder : str or Path
        With files such as ``Testing/GoldRatings-1a.txt`` (of SemEval-2012-Gold-Ratings) or
        ``Phase2AnswersScaled/Phase2AnswersScaled-1a.txt`` (of SemEval-2012-Platinum-Ratings), at any depth.

    Returns
    -------
    polars.DataFrame
        ``relation`` (such as ``1a``), ``first``, ``second``, ``strength`` (Float64).

    Raises
    ------
    StimulusError
        If there are no such files, a relation is in two, or one cannot be read; naming file and line.
    """
    rows: list[tuple[str, str, str, float]] = []
    source: dict[str, Path] = {}
    for path in _found(folder, SEMEVAL_NAME, "rated pairs such as 'GoldRatings-1a.txt'"):
        relation = path.stem.rpartition("-")[2]
        if (other := source.setdefault(relation, path)) != path:
            raise StimulusError(f"{path} and {other} both hold the relation {relation!r}; name the folder of one kind")
        for line, place in _lines(path):
            if line.startswith("#"):
                continue
            match = SEMEVAL_LINE.fullmatch(line.strip())
            if match is None:
                raise StimulusError(f'{place}: {line!r} is not a rating and a pair such as 54.0 "flower:tulip"')
            rows.append((relation, match[2].strip(), match[3].strip(), float(match[1])))
    return pl.DataFrame(rows, {**dict.fromkeys(COLUMNS, pl.String), "strength": pl.Float64}, orient="row")


def read_pairs_csv(
    path: str | Path, *, first: str = "first", second: str = "second", relation: str = "relation"
) -> pl.DataFrame:
    """Read pairs from a CSV with a header; numbers and booleans of its other columns are recognised.

    Parameters
    ----------
    path : str or Path
    first, second, relation : str
        Names of the columns.

    Returns
    -------
    polars.DataFrame
        ``relation``, ``first``, ``second``, then the other columns as they are.

    Raises
    ------
    StimulusError
        If the file cannot be read, lacks a column, or a cell of the three is empty; naming file and line.
    """
    names, rows = _cells(Path(path))
    named = dict(zip(COLUMNS, (relation, first, second), strict=True))
    for new, old in named.items():
        if old not in names:
            raise StimulusError(f"{path} has no column {old!r}; it has {', '.join(names)}. Name it by {new}=")
        if new in names and new not in named.values():
            raise StimulusError(f"{path}: {old!r} is to be {new!r}, but there is a column of that name; rename it")
    columns = {name: [row[at] for row, _ in rows] for at, name in enumerate(names)}
    for old in named.values():
        for cell, (_, place) in zip(columns[old], rows, strict=True):
            if not cell.strip():
                raise StimulusError(f"{place}: {old} is empty; write a word")
    others = {
        name: typed_cells([cell or None for cell in cells])
        for name, cells in columns.items()
        if name not in named.values()
    }
    return pl.DataFrame({**{new: [cell.strip() for cell in columns[old]] for new, old in named.items()}, **others})


def _cells(path: Path) -> tuple[list[str], list[tuple[list[str], str]]]:
    """Return the names of a CSV's columns, and every row with its place."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        names = next(reader, [])
        rows = [(cells, f"{path}, line {reader.line_num}") for cells in reader if cells]
    except csv.Error as error:
        raise StimulusError(f"{path}, line {reader.line_num}: {error}") from None
    for cells, place in rows:
        if len(cells) != len(names):
            raise StimulusError(f"{place}: {len(cells)} cells for {len(names)} columns; quote cells with commas")
    if not rows or len(set(names)) < len(names):
        raise StimulusError(f"{path}: expected a header of different names and at least one row below it")
    return names, rows


def _found(folder: str | Path, name: re.Pattern[str], what: str) -> list[Path]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and name.fullmatch(path.name))
    if not paths:
        raise StimulusError(f"{folder}: no {what} in this folder or below")
    return paths


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise StimulusError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise StimulusError(f"{path}: {error}; save it as UTF-8") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield lines that are not blank, and the place of each."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield line.rstrip("\r"), f"{path}, line {number}"


def _relation(path: Path) -> tuple[str, list[Any]]:
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise StimulusError(f"{path}, line {error.lineno}: {error.msg}") from None
    match content:
        case {"name": str(name), "samples": [*samples]} if name and samples:
            return name, samples
    raise StimulusError(f"{path}: expected an object with 'name' and a list 'samples' that is not empty")


def _sample(sample: object, place: str) -> tuple[str, str]:
    match sample:
        case {"subject": str(first), "object": str(second)} if first.strip() and second.strip():
            return first.strip(), second.strip()
    raise StimulusError(f"{place}: {sample!r} is not an object with the words 'subject' and 'object'")


def write_pairs(pairs: pl.DataFrame, path: Path) -> None:
    """Write a table of pairs as ``.csv`` or ``.parquet``, in one piece.

    Raises
    ------
    StimulusError
        If the suffix is another.
    """
    writers = {".csv": lambda file: file.write(pairs.write_csv().encode()), ".parquet": pairs.write_parquet}
    if path.suffix not in writers:
        raise StimulusError(f"{path}: unknown suffix {path.suffix!r}; a table of pairs is {' or '.join(writers)}")
    replace_file(path, writers[path.suffix])
