"""Reading a run."""

import json
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa

from stratoscope.errors import InvalidRequestError, RunError, RunIncompleteError, RunNotFoundError, ShardDamagedError
from stratoscope.rows import IntArray, RowIndex
from stratoscope.stimuli.fields import field_series
from stratoscope.store.damage import checked_keys, find_damage, records_by_shard, require_whole
from stratoscope.store.ledger import ShardRecord, StimulusRecord
from stratoscope.store.measurement import Measurement
from stratoscope.store.objects import RunPath
from stratoscope.store.published import opened_ledger
from stratoscope.store.shard import FOLDER
from stratoscope.store.values import ShardReader
from stratoscope.store.views import RunColumns, RunTokens
from stratoscope_wire import Capture, Column, ModelCard
from stratoscope_wire.schema import KEY_FIELDS
from stratoscope_wire.selectors import is_single_row


class Run:
    """A run as it was when opened; it may be read while it is being collected. Open it with `Run.open`.

    Whatever is returned has its rows in the order of `stimuli`.

    Attributes
    ----------
    place : Path or ObjectPath
        Where the run lies.
    """

    def __init__(
        self,
        place: RunPath,
        measurement: Measurement,
        records: list[StimulusRecord],
        shards: list[ShardRecord],
        *,
        allow_incomplete: bool,
    ) -> None:
        self.place = place
        self._measurement = measurement
        self._all_records = records
        self._shards = shards
        self._allow_incomplete = allow_incomplete

    @classmethod
    def open(cls, path: str | Path, *, allow_incomplete: bool = False) -> "Run":
        """Open a run.

        Parameters
        ----------
        path
            Folder of the run, or its address in an object store.
        allow_incomplete
            Whether to leave stimuli without activations out of everything, instead of refusing to give activations.

        Raises
        ------
        RunNotFoundError
            If there is none.
        ShardDamagedError
            If a committed file is missing or has another length.
        """
        with opened_ledger(path) as (place, ledger), ledger.snapshot():
            measurement, records, shards = ledger.measurement(), ledger.stimuli(), ledger.shards()
        if measurement is None:
            raise RunNotFoundError(f"the run {place} was never begun; collect into it first")
        require_whole(place, records, shards)
        return cls(place, measurement, records, shards, allow_incomplete=allow_incomplete)

    def __repr__(self) -> str:
        done = sum(record.state == "done" for record in self._all_records)
        return f"Run({str(self.place)!r}, {done} of {len(self._all_records)} stimuli, model {self.card.model!r})"

    @property
    def card(self) -> ModelCard:
        """The model that was measured."""
        return self._measurement.card

    @property
    def capture(self) -> Capture:
        """What was captured, as it was asked for."""
        return self._measurement.capture

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of activations."""
        return self._measurement.columns

    @property
    def selectors(self) -> tuple[str, ...]:
        """Labels of the selectors."""
        return self._measurement.capture.labels

    @property
    def add_special_tokens(self) -> bool:
        """Whether texts were tokenised with the model's special tokens."""
        return self._measurement.add_special_tokens

    @property
    def missing(self) -> dict[str, str | None]:
        """Ids of the stimuli without activations, each with the last error if there was one."""
        return {record.id: record.error for record in self._all_records if record.state != "done"}

    @property
    def shard_paths(self) -> tuple[Path, ...]:
        """Files that hold the rows. Read these, never whatever else lies in the folder."""
        return tuple(self.path / FOLDER / shard.name for shard in self._shards)

    @property
    def path(self) -> Path:
        """Folder of the run.

        Raises
        ------
        RunError
            If it lies in an object store.
        """
        if not isinstance(self.place, Path):
            raise RunError(f"the run {self.place} is no folder on this machine; name one for what is to be written")
        return self.place

    @property
    def _places(self) -> list[RunPath]:
        return [self.place / FOLDER / shard.name for shard in self._shards]

    def stimuli(self) -> pl.DataFrame:
        """Return the stimuli: ``id``, ``text``, then every label and group.

        Of an incomplete run opened with `allow_incomplete`, only those with activations.
        """
        records = self._records
        contents = [record.stimulus for record in records]
        fields = [json.loads(record.fields) for record in records]
        names = list(dict.fromkeys(name for row in fields for name in row))
        return pl.DataFrame(
            [
                pl.Series("id", [record.id for record in records], dtype=pl.String),
                pl.Series("text", [stimulus.text for stimulus in contents], dtype=pl.String),
                *(field_series(name, [row.get(name) for row in fields]) for name in names),
            ]
        )

    def activations(self, selector: str | None = None) -> RunColumns:
        """Return a view of the activations: ``(site, layer)`` to a float32 array of shape (n_stimuli, width).

        An array is read from disk each time it is asked for.

        Parameters
        ----------
        selector
            Label of a selector with one row per stimulus; may be left out if it is the only one.

        Raises
        ------
        RunIncompleteError
            If stimuli have no activations yet and the run was not opened with `allow_incomplete`.
        InvalidRequestError
            If there is no such selector, or it gives several rows per stimulus.
        """
        label = self._label(selector)
        if not is_single_row(label):
            raise InvalidRequestError(f"selector {label!r} gives one row per token; use Run.tokens({label!r})")
        return RunColumns(self.columns, self.card.n_layers, self._readers, self._index, label)

    def tokens(self, selector: str) -> RunTokens:
        """Return a view of a selector such as ``all``: ``(site, layer)`` to n_stimuli arrays (n_tokens, width)."""
        return RunTokens(self.columns, self.card.n_layers, self._readers, self._index, self._label(selector))

    def positions(self, selector: str | None = None) -> IntArray:
        """Return the token position of a selector's rows, int32 of shape (n_rows,); -1 where pooled."""
        return self._index.position[self._index.selectors[self._label(selector)].rows]

    def token_ids(self, selector: str | None = None) -> IntArray:
        """Return the token id of a selector's rows, int32 of shape (n_rows,); -1 where pooled."""
        return self._index.token_id[self._index.selectors[self._label(selector)].rows]

    def counts(self, selector: str | None = None) -> IntArray:
        """Return the number of a selector's rows per stimulus, int32 of shape (n_stimuli,)."""
        return self._index.selectors[self._label(selector)].counts.astype("int32")

    def verify(self) -> list[str]:
        """Read every byte of the run; return what is wrong, each fault naming its file. Empty if all is well.

        `stratoscope.verify` also names the stimuli and checks the ledger, `stratoscope.repair` mends.
        """
        damages = find_damage(self.place, self._all_records, self._shards, fingerprint=self.card.fingerprint)
        return [damage.fault for damage in damages]

    @cached_property
    def _readers(self) -> list[ShardReader]:
        rows = (shard.rows for shard in self._shards)
        return [ShardReader(path, n, self.columns) for path, n in zip(self._places, rows, strict=True)]

    @property
    def _records(self) -> list[StimulusRecord]:
        return [r for r in self._all_records if r.state == "done" or not self._allow_incomplete]

    @cached_property
    def _index(self) -> RowIndex:
        missing = self.missing
        if missing and not self._allow_incomplete:
            first, error = next(iter(missing.items()))
            raise RunIncompleteError(
                f"{len(missing)} of {len(self._all_records)} stimuli of the run {self.place} have no activations yet, "
                f"the first is {first!r}{f' ({error})' if error else ''}; collect them, or open the run with "
                "allow_incomplete=True to leave them out"
            )
        try:
            return RowIndex.of(self._check_keys(), [record.id for record in self._records], self.selectors)
        except ValueError as error:
            raise ShardDamagedError(f"the run {self.place} is damaged: {error}") from None

    def _check_keys(self) -> pa.Table:
        """Read the key columns of all shards, and hold them against the ledger."""
        placed = records_by_shard(self._all_records, self._shards)
        empty = pa.schema(KEY_FIELDS).empty_table()
        return pa.concat_tables([empty, *checked_keys(self.place, self.card.fingerprint, placed)])

    def _label(self, selector: str | None) -> str:
        if selector is None and len(self.selectors) == 1:
            return self.selectors[0]
        if selector not in self.selectors:
            wrong = "name a selector" if selector is None else f"selector {selector!r} was not captured"
            raise InvalidRequestError(f"{wrong}; the run has {', '.join(self.selectors)}")
        return selector
