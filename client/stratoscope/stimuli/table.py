"""The table of stimuli: checked once, then never changed."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import polars as pl
from pydantic import ValidationError

from stratoscope.captures import explain, to_json
from stratoscope.errors import InvalidRequestError, StimulusError
from stratoscope.stimuli import fields as field_columns
from stratoscope.stimuli.spans import PREFIX, parse_span
from stratoscope_wire import Stimulus

SOURCES: Final = ("text", "token_ids", "messages")
"""Columns that hold what is sent; each stimulus has exactly one."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class StimulusTable:
    """Stimuli and what is known about them.

    Attributes
    ----------
    stimuli : tuple of Stimulus
        What is sent, spans included.
    fields : polars.DataFrame of n_stimuli rows
        Labels and groups: every other column of the source.
    """

    stimuli: tuple[Stimulus, ...]
    fields: pl.DataFrame

    def __post_init__(self) -> None:
        if not self.stimuli:
            raise StimulusError("there are no stimuli")
        if self.fields.width and self.fields.height != len(self.stimuli):
            raise StimulusError(f"{len(self.stimuli)} stimuli have {self.fields.height} rows of fields")
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise StimulusError(f"stimulus id {twice[0]!r} occurs more than once ({len(twice)} such ids)")

    def __len__(self) -> int:
        return len(self.stimuli)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Ids of the stimuli."""
        return tuple(stimulus.id for stimulus in self.stimuli)

    @cached_property
    def content_hashes(self) -> tuple[str, ...]:
        """Content hash of each stimulus; see `content_hash`."""
        return tuple(content_hash(stimulus) for stimulus in self.stimuli)

    @property
    def texts(self) -> tuple[str | None, ...]:
        """Text of each stimulus, ``None`` for one that was given as token ids or messages."""
        return tuple(stimulus.text for stimulus in self.stimuli)

    def field_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the fields of each stimulus."""
        yield from self.fields.iter_rows(named=True) if self.fields.width else ({} for _ in self.stimuli)

    @classmethod
    def from_rows(cls, rows: Sequence[Row], places: Sequence[str], source: str) -> "StimulusTable":
        """Build a table from rows of cells, all with the same columns.

        Parameters
        ----------
        rows
            ``text``, ``token_ids`` or ``messages``; optionally ``id`` and ``span.NAME``; any other column is a field.
        places
            Where each row was found, for messages.
        source
            Name of the file, for messages.

        Raises
        ------
        StimulusError
            Naming source, row and column.
        """
        if not rows:
            raise StimulusError(f"{source} holds no stimuli")
        names = list(rows[0])
        if not set(names) & set(SOURCES):
            raise StimulusError(f"{source} has no column 'text'; its columns are {', '.join(names)}")
        stimuli = [_stimulus(row, f"{source}, {place}") for row, place in zip(rows, places, strict=True)]
        if "id" not in names:
            stimuli = _named_by_content(stimuli)
        _check_ids(stimuli, places, source)
        return cls(tuple(stimuli), _fields(names, rows, source))

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, source: str = "the frame") -> "StimulusTable":
        """Build a table from a data frame with the columns of a stimulus file."""
        rows = list(frame.iter_rows(named=True))
        return cls.from_rows(rows, [f"row {number}" for number in range(1, len(rows) + 1)], source)


def content_hash(stimulus: Stimulus) -> str:
    """Return the SHA-256, as 64 hex digits, of what is sent for a stimulus: text, tokens or messages, and spans."""
    content = stimulus.model_dump(mode="json", exclude={"id"}, exclude_none=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def _stimulus(row: Row, place: str) -> Stimulus:
    content = {name: row[name] for name in SOURCES if row.get(name) is not None}
    if not content:
        raise StimulusError(f"{place}: the text is empty")
    text = content.get("text")
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise StimulusError(f"{place}, column 'text': {text!r} is no text; send blanks as token_ids if you mean them")
    spans = {}
    for name, value in row.items():
        if name.startswith(PREFIX) and value is not None:
            spans[name.removeprefix(PREFIX)] = _span(value, text, f"{place}, column {name!r}")
    try:
        stimulus = Stimulus(id=_id(row, place), **content, spans=spans)
        to_json(stimulus)
    except ValidationError as error:
        raise StimulusError(f"{place}: {explain(error)}") from None
    except InvalidRequestError as error:
        raise StimulusError(f"{place}: {error}") from None
    return stimulus


def _span(value: object, text: object, place: str) -> tuple[int, int]:
    if not isinstance(text, str):
        raise StimulusError(f"{place}: only a text has spans")
    try:
        return parse_span(value, text)
    except ValueError as error:
        raise StimulusError(f"{place}: {error}") from None


def _id(row: Row, place: str) -> str:
    if "id" not in row:
        return "unnamed"
    name = row["id"]
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if not isinstance(name, str) or not name.strip():
        raise StimulusError(f"{place}, column 'id': {name!r} is no id; give every stimulus one, or drop the column")
    return name


def _named_by_content(stimuli: Sequence[Stimulus]) -> list[Stimulus]:
    """Name stimuli by their content, so that adding or reordering rows renames none of the others.

    The second occurrence of the same content is told apart by ``-2``, and so on.
    """
    seen: Counter[str] = Counter()
    named = []
    for stimulus in stimuli:
        name = f"s{content_hash(stimulus)[:16]}"
        seen[name] += 1
        named.append(stimulus.model_copy(update={"id": name if seen[name] == 1 else f"{name}-{seen[name]}"}))
    return named


def _check_ids(stimuli: Sequence[Stimulus], places: Sequence[str], source: str) -> None:
    first: dict[str, str] = {}
    for stimulus, place in zip(stimuli, places, strict=True):
        if stimulus.id in first:
            raise StimulusError(
                f"{source}, {place}, column 'id': {stimulus.id!r} already names the stimulus in {first[stimulus.id]}"
            )
        first[stimulus.id] = place


def _fields(names: Sequence[str], rows: Sequence[Row], source: str) -> pl.DataFrame:
    columns = []
    for name in names:
        if name in ("id", *SOURCES) or name.startswith(PREFIX):
            continue
        try:
            field_columns.check_name(name)
            columns.append(field_columns.field_series(name, [row[name] for row in rows]))
        except (ValueError, OverflowError) as error:
            raise StimulusError(f"{source}, column {name!r}: {error}") from None
    return pl.DataFrame(columns)
