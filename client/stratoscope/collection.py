"""Collecting a run: whatever is missing is fetched, verified and committed; the same call finishes what was begun."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pyarrow as pa

from stratoscope.captures import Layers, capture_columns, lossless_dtype, make_capture
from stratoscope.client import Client
from stratoscope.errors import (
    ConfigurationError,
    ServerLostError,
    StimulusRefusedError,
    StratoscopeError,
    TooLargeError,
    UnprocessableRequestError,
)
from stratoscope.fetchers import Fetchers
from stratoscope.fetching import Fetched
from stratoscope.interrupts import interrupts_put_off
from stratoscope.packing import TARGET_BYTES, Recipe, halve, pack
from stratoscope.retries import is_retryable
from stratoscope.servers import as_clients, as_sources, common_card, smallest_limits
from stratoscope.stimuli.table import StimulusTable
from stratoscope.store.desk import open_writer
from stratoscope.store.ledger import StimulusRecord
from stratoscope.store.measurement import Measurement
from stratoscope.store.writer import RunWriter
from stratoscope_wire import ActivationsRequest, Selector, Stimulus
from stratoscope_wire.request import Dtype
from stratoscope_wire.tracing import span


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """How a run is collected; none of it changes what is measured.

    Attributes
    ----------
    request_bytes
        Activations per answer aimed at.
    shard_bytes, shard_seconds
        A shard is committed once it holds so many bytes of float32, or so long after the last one.
    max_failures
        So many requests in a row may fail at a server, each after all its retries, before it is set aside; if it is
        the only one, collection then stops.
    lost_seconds
        So long may all of several servers be failing or busy before collection stops.
    on_refusal
        ``"stop"`` at a stimulus that the server refuses for good, or ``"skip"`` it and mark it as failed.
    desk
        Local folder for what a run in an object store needs while it is written; by default in the user's cache.
    take_over
        Whether to end the turn of another desk that writes to the same run.
    """

    request_bytes: int = TARGET_BYTES
    shard_bytes: int = 64 << 20
    shard_seconds: float = 60.0
    max_failures: int = 3
    lost_seconds: float = 300.0
    on_refusal: Literal["stop", "skip"] = "stop"
    desk: Path | None = None
    take_over: bool = False


@dataclass(slots=True)
class Progress:
    """How far a collection is.

    Attributes
    ----------
    total
        Stimuli wanted.
    already_there
        Of them, committed before.
    fetched
        Of them, verified now; they survive a crash once `committed` counts them.
    committed
        Of the fetched, committed.
    failed
        Of them, refused by the server for good.
    shards, bytes
        Written now; bytes are those of the files.
    requests
        Sent now, retries included.
    """

    total: int
    already_there: int
    fetched: int = 0
    committed: int = 0
    failed: int = 0
    shards: int = 0
    bytes: int = 0
    requests: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every stimulus wanted is committed."""
        return self.already_there + self.committed == self.total


@span("collect")
def collect(
    table: StimulusTable,
    run_dir: str | Path,
    client: Client | Sequence[Client],
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Layers = "all",
    select: Sequence[Selector | str] = ("last",),
    add_special_tokens: bool = True,
    concurrency: int = 2,
    settings: CollectSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Collect activations of every stimulus of a table into a run.

    Stimuli that the run already holds are not asked for again. However this ends, by an error, an interrupt or a
    power failure, what was committed stays, and the same call goes on with the rest.

    Parameters
    ----------
    run_dir
        Folder of the run; made if it does not exist. Or an address in an object store, such as ``s3://bucket/run``.
    client
        Of the server; or several, of servers of the same model, which share the work. One that fails is set aside and
        tried again later, and its requests go to the others.
    sites, layers, select
        What to read; see `stratoscope.captures.make_capture`.
    concurrency
        Requests in flight, per server.
    progress
        Called after every answer and every commit.

    Returns
    -------
    Progress
        The final counts.

    Raises
    ------
    RunError
        If the run holds another model, capture or content, or another process writes to it.
    ServersDifferError
        If several servers do not have the same model; nothing is then written.
    StimulusRefusedError
        If the server refuses a stimulus for good.
    ServerLostError
        If too many requests in a row failed, or all of several servers did for too long.
    StratoscopeError
        If an answer is corrupt, the model changes, or the key is wrong.
    StorageError
        If the disk is full or fails; it is an `OSError` too.
    """
    if concurrency < 1:
        raise ConfigurationError(f"concurrency is {concurrency}; it must be at least 1")
    chosen = settings or CollectSettings()
    clients = as_clients(client)
    card = common_card(clients)
    limits = smallest_limits(clients)
    capture = make_capture(sites, layers, select)
    columns = capture_columns(capture, card)
    recipe = Recipe(capture, columns, lossless_dtype(capture, card), add_special_tokens)
    recipe.request(table.stimuli)
    measurement = Measurement(card, capture, columns, add_special_tokens)
    with open_writer(run_dir, measurement, desk=chosen.desk, take_over=chosen.take_over) as writer:
        writer.enter(table)
        writer.write_manifest()
        records = writer.stimuli()
        wanted = missing(records)
        requests = pack(wanted, recipe, limits, chosen.request_bytes)
        counts = Progress(total=len(records), already_there=len(records) - len(wanted))
        collection = _Collection(writer, counts, chosen, progress or (lambda _: None))
        try:
            with Fetchers(as_sources(clients, chosen.max_failures), requests, concurrency) as fetchers:
                for fetched in fetchers:
                    collection.take(fetched, fetchers)
        finally:
            collection.commit()
            writer.write_manifest()
    return counts


def missing(records: Sequence[StimulusRecord]) -> list[Stimulus]:
    """Return the stimuli of a run that are still to be fetched: wanted less done, in order."""
    return [record.stimulus for record in records if record.state != "done"]


@dataclass(slots=True)
class _Collection:
    """Takes answers, keeps them until they make a shard, and decides what to do about failures."""

    writer: RunWriter
    counts: Progress
    settings: CollectSettings
    progress: Callable[[Progress], None]
    buffer: list[tuple[pa.RecordBatch, Dtype]] = field(default_factory=list)
    buffered_stimuli: int = 0
    since: float = field(default_factory=time.monotonic)

    def take(self, fetched: Fetched | None, fetchers: Fetchers) -> None:
        """Keep what came of a request, if one came; see to what did not; and commit a shard if it is due."""
        if fetched is not None:
            self._keep(fetched)
            if fetched.error is not None:
                fetchers.add(self._after_failure(fetched, fetched.error))
            self.progress(self.counts)
        self._check_lost(fetchers)
        if self._is_due():
            # On the way out it may be interrupted: then it is the second time.
            with interrupts_put_off():
                self.commit()

    def _keep(self, fetched: Fetched) -> None:
        n_came = len(fetched.request.stimuli) - len(fetched.missing)
        self.buffer += [(batch, fetched.request.dtype) for batch in fetched.batches]
        self.buffered_stimuli += n_came
        self.counts.fetched += n_came
        self.counts.requests += fetched.n_calls

    @span("commit")
    def commit(self) -> None:
        """Commit what is buffered as one shard."""
        # Emptied first: after a failed write the same rows must not be tried again on the way out.
        batches, self.buffer = self.buffer, []
        n_stimuli, self.buffered_stimuli = self.buffered_stimuli, 0
        self.since = time.monotonic()
        if not batches:
            return
        record = self.writer.commit(batches)
        self.writer.write_manifest(at_leisure=True)
        self.counts.committed += n_stimuli
        self.counts.shards += 1
        self.counts.bytes += record.bytes
        self.progress(self.counts)

    def _is_due(self) -> bool:
        n_bytes = sum(batch.num_rows for batch, _ in self.buffer) * self.writer.measurement.row_bytes
        return n_bytes >= self.settings.shard_bytes or time.monotonic() - self.since >= self.settings.shard_seconds

    def _after_failure(self, fetched: Fetched, error: StratoscopeError) -> list[ActivationsRequest]:
        """Return what to ask instead, or raise the error if that is the end."""
        absent = set(fetched.missing)
        left = [stimulus for stimulus in fetched.request.stimuli if stimulus.id in absent]
        request = fetched.request.model_copy(update={"stimuli": left})
        if isinstance(error, TooLargeError) and len(left) > 1:
            return halve(request)
        refused = _refused(error, left)
        if refused is not None:
            return self._after_refusal(request, refused, error)
        self.writer.note_failures(fetched.missing, str(error), final=False)
        if not is_retryable(error):
            raise error
        return [request]

    def _check_lost(self, fetchers: Fetchers) -> None:
        stranded_s = fetchers.stranded_s
        if stranded_s is None:
            return
        go_on = f"{self.counts.fetched} stimuli were fetched. Run the same command again to go on"
        first, *others = fetchers.sources
        if not others:
            raise ServerLostError(
                f"{first.failures} requests in a row failed; {go_on}. The last failure: {first.error}"
            ) from first.error
        if stranded_s >= self.settings.lost_seconds:
            reasons = "; ".join(f"{source.name}: {source.error}" for source in fetchers.sources)
            raise ServerLostError(
                f"no server has answered well for {stranded_s:.0f} s; {go_on}. The last failures: {reasons}"
            ) from first.error

    def _after_refusal(
        self, request: ActivationsRequest, refused: Stimulus, error: StratoscopeError
    ) -> list[ActivationsRequest]:
        skip = self.settings.on_refusal == "skip"
        self.writer.note_failures([refused.id], str(error), final=skip)
        if not skip:
            raise StimulusRefusedError(
                f"the server refuses stimulus {refused.id!r}: {error}. Change or remove it and run the same command "
                "again, or skip what is refused",
                [refused.id],
            ) from error
        self.counts.failed += 1
        others = [stimulus for stimulus in request.stimuli if stimulus.id != refused.id]
        return [request.model_copy(update={"stimuli": others})] if others else []


def _refused(error: StratoscopeError, left: Sequence[Stimulus]) -> Stimulus | None:
    """Return the stimulus that the server will never take, if the error names one."""
    if isinstance(error, TooLargeError) and len(left) == 1:
        return left[0]
    if isinstance(error, UnprocessableRequestError):
        return next((stimulus for stimulus in left if stimulus.id == error.stimulus), None)
    return None
