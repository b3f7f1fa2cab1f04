"""Staging: where gathered rows lie between the layer that computed them and shared memory.

On a GPU rows are gathered on the device, leave it on a stream of their own into pinned memory, and are delivered from
there while the next step computes. On a CPU both are the same memory. All buffers are made once, large enough for a
step that copies every row of every column.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from stratoscope_server.engines.vllm.layout import Place, Run, aligned, split_runs
from stratoscope_server.engines.vllm.step import Gather, LongArray, StepPlan
from stratoscope_wire import Column

logger = logging.getLogger(__name__)

N_SLOTS: Final = 2
"""Steps whose rows may be on their way at once."""

MeanKey = tuple[int, int]
"""Serial of a prompt, and which of its means."""


class CaptureError(RuntimeError):
    """The model did not compute what the map of its architecture says. Ends the engine: no row of it can be trusted."""


@dataclass(frozen=True, slots=True)
class StagedRun:
    """Gathered rows of one run of columns.

    Attributes
    ----------
    run, owned
        The run, and the columns of it that this worker copies.
    plain : tensor of shape (n_owned, n_staged, width)
        In the type in which the model computes.
    pooled : float32 tensor of shape (n_owned, n_means, width)
        Sums, and at the end of the step means where they are complete.
    """

    run: Run
    owned: range
    plain: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True)
class StagedGather:
    """A gather of the plan with its buffers; `source`, `pooled_source` and `pooled_lengths` are on the device."""

    gather: Gather
    runs: tuple[StagedRun, ...]
    source: torch.Tensor
    pooled_source: torch.Tensor
    pooled_lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class StagedStep:
    """One step on its way.

    Attributes
    ----------
    plan
        Of the step.
    gathers
        With buffers in host memory.
    copied
        Waits until the rows are there.
    """

    plan: StepPlan
    gathers: tuple[StagedGather, ...]
    copied: Callable[[], None]


class _Buffer:
    """Memory for the rows of one step, handed out from its start."""

    def __init__(self, n_bytes: int, device: torch.device, *, pinned: bool) -> None:
        self._device = device
        self._pinned = pinned
        self._used = 0
        self._memory = self._make(n_bytes)

    def _make(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device=self._device, pin_memory=self._pinned)

    def reset(self, n_bytes: int) -> None:
        """Start again, with at least so much memory."""
        if n_bytes > len(self._memory):
            logger.warning("a step has %d bytes of rows, more than the %d set aside", n_bytes, len(self._memory))
            self._memory = self._make(n_bytes)
        self._used = 0

    def take(self, shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised memory as a tensor."""
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        tensor = self._memory[self._used : self._used + size].view(dtype).view(shape)
        self._used += aligned(size)
        return tensor


class Staging:
    """The buffers of one worker.

    Parameters
    ----------
    columns
        Every column of the model; a ticket's column numbers count in it.
    place
        Of this worker.
    max_tokens
        Tokens of a step, at most.
    dtype
        In which the model computes.
    device
        On which the model computes.
    """

    def __init__(
        self, columns: Sequence[Column], place: Place, max_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._columns = columns
        self._place = place
        self._dtype = dtype
        self._device = device
        on_gpu = device.type == "cuda"
        n_bytes = _step_bytes(columns, place, max_tokens, dtype)
        self._host = [_Buffer(n_bytes, torch.device("cpu"), pinned=on_gpu) for _ in range(N_SLOTS)]
        # One for each slot here too: the rows of a step leave the device while the next step computes.
        self._on_device = [_Buffer(n_bytes, device, pinned=False) for _ in range(N_SLOTS)] if on_gpu else self._host
        self.device_bytes = N_SLOTS * n_bytes if on_gpu else 0
        """Bytes set aside on the device."""
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._free = threading.Semaphore(N_SLOTS)
        self._next = 0
        self._carried: dict[MeanKey, list[torch.Tensor]] = {}

    def begin(self, plan: StepPlan) -> list[StagedGather]:
        """Lay out a step's buffers; waits while all slots are on their way."""
        self._free.acquire()
        return self._lay_out(plan, self._on_device[self._next], self._indices)

    def finish(self, plan: StepPlan, gathers: Sequence[StagedGather]) -> StagedStep:
        """Complete the means and send the rows on their way."""
        for staged in gathers:
            self._complete_means(staged)
        slot, self._next = self._next, (self._next + 1) % N_SLOTS
        if self._stream is None:
            return StagedStep(plan, tuple(gathers), lambda: None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        on_host = self._lay_out(plan, self._host[slot], lambda _: torch.empty(0, dtype=torch.int64))
        with torch.cuda.stream(self._stream):
            for here, there in zip(gathers, on_host, strict=True):
                for source, target in zip(here.runs, there.runs, strict=True):
                    target.plain.copy_(source.plain, non_blocking=True)
                    target.pooled.copy_(source.pooled, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return StagedStep(plan, tuple(on_host), copied.synchronize)

    def give_back(self) -> None:
        """Free the slot of the oldest step that is on its way."""
        self._free.release()

    def forget(self, serial: int) -> None:
        """Drop what is carried of a prompt that ended."""
        for key in [key for key in self._carried if key[0] == serial]:
            del self._carried[key]

    def _lay_out(
        self, plan: StepPlan, buffer: _Buffer, indices: Callable[[LongArray], torch.Tensor]
    ) -> list[StagedGather]:
        shapes = [(gather, self._run_shapes(gather)) for gather in plan.gathers]
        buffer.reset(
            sum(
                aligned(n * s * w * self._dtype.itemsize) + aligned(n * p * w * 4)
                for _, found in shapes
                for _, _, (n, s, p, w) in found
            )
        )
        return [
            StagedGather(
                gather,
                tuple(
                    StagedRun(run, owned, buffer.take((n, s, w), self._dtype), buffer.take((n, p, w), torch.float32))
                    for run, owned, (n, s, p, w) in found
                ),
                indices(gather.source),
                indices(gather.pooled_source),
                indices(gather.pooled_lengths),
            )
            for gather, found in shapes
        ]

    def _run_shapes(self, gather: Gather) -> list[tuple[Run, range, tuple[int, int, int, int]]]:
        columns = column_numbers(gather.columns)
        found = []
        for run in split_runs([self._columns[number] for number in columns]):
            owned = run.owned(self._place, gather.rotation)
            _, width = run.slice(self._place)
            found.append((run, owned, (len(owned), len(gather.source), len(gather.means), width)))
        return found

    def _indices(self, numbers: LongArray) -> torch.Tensor:
        tensor = torch.from_numpy(numbers)
        return tensor if self._device.type == "cpu" else tensor.pin_memory().to(self._device, non_blocking=True)

    def _complete_means(self, staged: StagedGather) -> None:
        """Add what earlier steps gave, keep what later ones go on with, and divide what is complete."""
        means = staged.gather.means
        if not means:
            return
        for index, mean in enumerate(means):
            key = (mean.serial, mean.index)
            carried = self._carried.pop(key, None)
            if carried is not None:
                for run, part in zip(staged.runs, carried, strict=True):
                    run.pooled[:, index] += part
            if not mean.done:
                self._carried[key] = [run.pooled[:, index].clone() for run in staged.runs]
        divisors = torch.tensor([float(mean.n_positions) for mean in means])
        if self._device.type == "cuda":
            divisors = divisors.pin_memory().to(self._device, non_blocking=True)
        for run in staged.runs:
            run.pooled.div_(divisors[None, :, None])


def column_numbers(columns: bytes) -> list[int]:
    """Return the column numbers of a ticket."""
    return list(memoryview(columns).cast("H"))


def _step_bytes(columns: Sequence[Column], place: Place, max_tokens: int, dtype: torch.dtype) -> int:
    widths: Mapping[Run, int] = {run: len(run.owned(place, 0)) * run.slice(place)[1] for run in split_runs(columns)}
    # Each rotation may give one column more of each run to this worker.
    spare = sum(run.slice(place)[1] for run in widths)
    return aligned(max_tokens * (sum(widths.values()) + spare) * dtype.itemsize)
