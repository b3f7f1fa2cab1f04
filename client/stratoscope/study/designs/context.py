"""Texts followed by neutral filler, so that what was read can be looked for some distance later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.errors import StimulusError
from stratoscope.stimuli.spans import PREFIX, parse_span

TOKENS_PER_WORD: Final = 1.2
"""Nominal: distances count no model's tokens, so that the texts are the same for all models."""

N_PASSAGES: Final = 4
"""Places in the filler at which it may begin."""

MADE: Final = ("distance", "n_words", "passage")
"""Columns that are made here; the base can have no columns of these names."""


def at_distance(base: pl.DataFrame, filler: Sequence[str], *, distances: Sequence[int], seed: int) -> pl.DataFrame:
    """Follow every text by whole neutral sentences until a distance is nearly reached.

    The filler is a circle of sentences that is entered at one of four places, its passages. All texts of a group have
    the same passage at all distances. Passages are dealt to the groups so that each is as nearly as possible equally
    frequent in every class of every label (minimization, Pocock & Simon 1975, *Biometrics* 31), so that neither the
    filler nor its last sentence says anything of a label.

    Parameters
    ----------
    base : polars.DataFrame
        ``text``, ``group``, labels and spans. Columns of floating-point numbers are not balanced. Which passage a group
        has does not depend on the order of the rows.
    filler : sequence of str
        Sentences, in the order in which they follow each other.
    distances : sequence of int
        Nominal tokens, at 1.2 per word, from 0: the text alone, with a full stop if it has no other end. The number of
        sentences is the one whose words come nearest to the distance, so that it is missed by at most half a sentence.
    seed : int
        Decides which groups have which passage.

    Returns
    -------
    polars.DataFrame
        Of shape (rows of the base x distances, its columns + 3), distance by distance: the base's columns;
        ``distance``, nominal tokens; ``n_words``, words of filler; ``passage``, 0 to 3. Spans are ranges of characters.

    Raises
    ------
    StimulusError
        If a column is missing, there already, or empty; the filler has empty or equal sentences, or is shorter than the
        longest distance; a distance is negative, there twice, or so short or near to another that whole sentences do
        not make a difference; two texts differ in their full stop alone; or a span is not in its text exactly once.
    """
    _check_base(base)
    _check_filler(filler, distances)
    passage_of = _passages(base, np.random.default_rng(seed))
    passage = pl.Series("passage", [passage_of[group] for group in base["group"]], dtype=pl.Int64)
    rotations = [_rotation(filler, number) for number in range(N_PASSAGES)]
    counts = [_counts(sentences, distances) for sentences in rotations]
    starts = [text if text.endswith((".", "!", "?")) else f"{text}." for text in base["text"]]
    base = base.with_columns(*_ranges(base), passage)
    frames = []
    for at, distance in enumerate(distances):
        endings = [sentences[: count[at]] for sentences, count in zip(rotations, counts, strict=True)]
        texts = [" ".join([start, *endings[which]]) for start, which in zip(starts, passage, strict=True)]
        n_words = [sum(_n_words(sentence) for sentence in endings[which]) for which in passage]
        frames.append(
            base.with_columns(
                pl.Series("text", texts, dtype=pl.String),
                pl.lit(distance, pl.Int64).alias("distance"),
                pl.Series("n_words", n_words, dtype=pl.Int64),
            )
        )
    made = pl.concat(frames).select(pl.exclude(MADE), *MADE)
    _check_made(made)
    return made


def _ranges(base: pl.DataFrame) -> list[pl.Series]:
    """Write the spans as ranges of characters: their words may occur in the filler too, "pen" in "open"."""
    columns = []
    for name in base.columns:
        if not name.startswith(PREFIX):
            continue
        ranges = []
        for text, span in zip(base["text"], base[name], strict=True):
            try:
                start, end = (None, None) if span is None else parse_span(span, text)
            except ValueError as error:
                raise StimulusError(f"at_distance: {name}: {error}") from None
            ranges.append(None if start is None else f"{start}:{end}")
        columns.append(pl.Series(name, ranges, dtype=pl.String))
    return columns


def _rotation(filler: Sequence[str], number: int) -> list[str]:
    start = number * len(filler) // N_PASSAGES
    return [*filler[start:], *filler[:start]]


def _n_words(sentence: str) -> int:
    return len(sentence.split())


def _counts(sentences: Sequence[str], distances: Sequence[int]) -> list[int]:
    """Return how many sentences come nearest to every distance; the fewer, if two come equally near."""
    reached = np.cumsum([0, *(_n_words(sentence) for sentence in sentences)]) * TOKENS_PER_WORD
    counts = [int(np.abs(reached - distance).argmin()) for distance in distances]
    for distance, count in zip(distances, counts, strict=True):
        same = [other for other, its in zip(distances, counts, strict=True) if its == count and other != distance]
        if same or (distance and not count):
            raise StimulusError(
                f"at_distance: distance {distance} comes to {count} whole sentences, as does {same[0] if same else 0}; "
                "choose distances that are a sentence apart (about 12 nominal tokens)"
            )
    return counts


def _passages(base: pl.DataFrame, rng: np.random.Generator) -> dict[str, int]:
    """Deal passages to groups, in random order, each to where its classes are least frequent so far."""
    groups = base["group"].unique().sort().to_list()
    members = _members(base, groups)
    dealt = np.zeros((N_PASSAGES, members.shape[1]))
    found: dict[str, int] = {}
    for number in rng.permutation(len(groups)):
        cost = dealt @ members[number]
        best = rng.choice(np.flatnonzero(cost == cost.min()))
        dealt[best] += members[number]
        found[groups[number]] = int(best)
    return found


def _members(base: pl.DataFrame, groups: list[str]) -> NDArray[np.float64]:
    """Count every group's texts, in all and by class of every label: float64 of shape (n_groups, n_classes + 1)."""
    row_of = {group: row for row, group in enumerate(groups)}
    rows = np.array([row_of[group] for group in base["group"]], dtype=np.intp)
    counts = [np.bincount(rows, minlength=len(groups)).astype(np.float64)]
    for name in base.columns:
        if name in ("text", "group") or name.startswith(PREFIX) or base.schema[name].is_float():
            continue
        for value in base[name].drop_nulls().unique().sort():
            inside = (base[name] == value).fill_null(value=False).to_numpy()
            counts.append(np.bincount(rows[inside], minlength=len(groups)).astype(np.float64))
    return np.column_stack(counts)


def _check_base(base: pl.DataFrame) -> None:
    for name in ("text", "group"):
        if name not in base.columns:
            raise StimulusError(f"at_distance: the base has no column {name!r}; it has {', '.join(base.columns)}")
        if base.schema[name] != pl.String or base[name].null_count() or (base[name].str.strip_chars() == "").any():
            raise StimulusError(f"at_distance: column {name!r} of the base must hold a text in every row")
    for name in MADE:
        if name in base.columns:
            raise StimulusError(f"at_distance: the base already has a column {name!r}; rename or drop it")


def _check_filler(filler: Sequence[str], distances: Sequence[int]) -> None:
    if not distances or min(distances) < 0 or len(set(distances)) < len(distances):
        raise StimulusError(f"at_distance: distances {list(distances)}; give different numbers from 0 up, at least one")
    if any(not sentence.strip() for sentence in filler) or len(set(filler)) < len(filler):
        raise StimulusError("at_distance: the filler has empty or equal sentences; give each once")
    there = sum(_n_words(sentence) for sentence in filler)
    if there * TOKENS_PER_WORD < max(distances):
        raise StimulusError(
            f"at_distance: the filler has {there} words, which are {there * TOKENS_PER_WORD:.0f} nominal tokens; "
            f"distance {max(distances)} needs {max(distances) / TOKENS_PER_WORD:.0f} words: add sentences"
        )


def _check_made(made: pl.DataFrame) -> None:
    twice = made["text"].filter(made["text"].is_duplicated())
    if len(twice):
        raise StimulusError(f"at_distance: the text {twice[0][:80]!r} comes out more than once; each must be its own")
