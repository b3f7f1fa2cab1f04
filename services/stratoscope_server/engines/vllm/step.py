"""The plan of one engine step: which rows of the batch go where. Built once per step, on the host, from host data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stratoscope_server.engines.vllm.ticket import Ticket
from stratoscope_server.engines.vllm.tracker import HoleError, PooledShare, Share, Tracker
from stratoscope_wire.request import Dtype

LongArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One request's part of a step, in the runner's own order.

    Attributes
    ----------
    tracker
        Of the prompt.
    start
        Absolute position of its first token in this step.
    n_tokens
        How many it has in this step.
    batch_row
        Row of the batch at which they begin.
    """

    tracker: Tracker
    start: int
    n_tokens: int
    batch_row: int


@dataclass(frozen=True, slots=True)
class Region:
    """A region of shared memory; see `stratoscope_server.engines.vllm.layout`."""

    offset: int
    n_rows: int
    dtype: Dtype


@dataclass(slots=True)
class Delivery:
    """Rows of one region.

    Attributes
    ----------
    staged, rows : int64 arrays of shape (n_rows,)
        Places among the gathered rows, and the rows of the region they become.
    """

    staged: LongArray
    rows: LongArray


@dataclass(frozen=True, slots=True)
class Mean:
    """One row of the pooled part of a gather.

    Attributes
    ----------
    serial, index
        Prompt, and which of its means.
    region, row
        Where it goes once it is complete.
    n_positions
        Over how many positions it is the mean.
    done
        Whether it is complete with this step.
    """

    serial: int
    index: int
    region: Region
    row: int
    n_positions: int
    done: bool


@dataclass(slots=True)
class Gather:
    """All rows that one step gives to the prompts that ask for the same columns.

    Attributes
    ----------
    columns, rotation
        As in `Ticket`.
    source : int64 array of shape (n_staged,)
        Rows of the batch to copy, ascending, each once.
    pooled_source, pooled_lengths : int64 arrays
        Rows of the batch to add up, mean after mean, and how many belong to each.
    deliveries
        By region.
    means
        One per entry of `pooled_lengths`.
    """

    columns: bytes
    rotation: int
    source: LongArray
    pooled_source: LongArray
    pooled_lengths: LongArray
    deliveries: dict[Region, Delivery]
    means: list[Mean]


@dataclass(slots=True)
class StepPlan:
    """What one step gives.

    Attributes
    ----------
    n_tokens
        Of the whole batch, without padding.
    n_prompts
        Requests in it.
    gathers
        What to copy.
    completed
        Serials of prompts that are complete with it.
    holes
        Serials of prompts that cannot be completed any more, each with the reason.
    """

    n_tokens: int
    n_prompts: int = 0
    gathers: list[Gather] = field(default_factory=list)
    completed: list[int] = field(default_factory=list)
    holes: dict[int, str] = field(default_factory=dict)


def plan_step(scheduled: Iterable[Scheduled], n_tokens: int) -> StepPlan:
    """Plan a step.

    Parameters
    ----------
    scheduled
        The requests of the step that are captured; their trackers move on.
    n_tokens
        Tokens of the whole batch.
    """
    plan = StepPlan(n_tokens)
    parts: dict[tuple[bytes, int], list[tuple[Scheduled, Share]]] = {}
    for part in scheduled:
        ticket = part.tracker.ticket
        try:
            share = part.tracker.take(part.start, part.start + part.n_tokens)
        except HoleError as error:
            plan.holes[ticket.serial] = str(error)
            continue
        if len(share.positions) or share.pooled:
            parts.setdefault((ticket.columns, ticket.rotation), []).append((part, share))
        if part.tracker.is_complete:
            plan.completed.append(ticket.serial)
    plan.gathers = [_gather(columns, rotation, members) for (columns, rotation), members in parts.items()]
    return plan


def _gather(columns: bytes, rotation: int, members: Sequence[tuple[Scheduled, Share]]) -> Gather:
    wanted = [_batch_rows(part, share.positions) for part, share in members]
    source, staged = np.unique(np.concatenate(wanted), return_inverse=True)
    deliveries: dict[Region, list[tuple[LongArray, LongArray]]] = {}
    begin = 0
    for (part, share), rows in zip(members, wanted, strict=True):
        if len(rows):
            ticket = part.tracker.ticket
            taken = (staged[begin : begin + len(rows)], share.rows.astype(np.int64) + ticket.first_row)
            deliveries.setdefault(region_of(ticket), []).append(taken)
            begin += len(rows)
    pooled = [(part, pooled) for part, share in members for pooled in share.pooled]
    return Gather(
        columns,
        rotation,
        source,
        np.concatenate([np.empty(0, np.int64), *(_batch_rows(part, share.positions) for part, share in pooled)]),
        np.array([len(share.positions) for _, share in pooled], np.int64),
        {region: _merge(taken) for region, taken in deliveries.items()},
        [_mean(part.tracker.ticket, share) for part, share in pooled],
    )


def region_of(ticket: Ticket) -> Region:
    """Return the region into which a prompt's rows go."""
    return Region(ticket.offset, ticket.n_rows, ticket.dtype)


def _batch_rows(part: Scheduled, positions: npt.NDArray[np.int32]) -> LongArray:
    return positions.astype(np.int64) + (part.batch_row - part.start)


def _merge(taken: Sequence[tuple[LongArray, LongArray]]) -> Delivery:
    return Delivery(np.concatenate([staged for staged, _ in taken]), np.concatenate([rows for _, rows in taken]))


def _mean(ticket: Ticket, share: PooledShare) -> Mean:
    row, positions = ticket.pooled[share.index]
    return Mean(ticket.serial, share.index, region_of(ticket), ticket.first_row + row, len(positions) // 4, share.done)
