"""Delivery: rows leave staging for shared memory on a thread of their own, and the server is told.

Whatever goes wrong here ends the process: the server sees it go, and every stream ends with an error.
"""

import logging
import mmap
import os
import queue
import threading
import traceback
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from stratoscope_server.engines.vllm.channel import Fault, Note, WorkerLink
from stratoscope_server.engines.vllm.layout import Place, column_offsets
from stratoscope_server.engines.vllm.staging import StagedGather, StagedRun, StagedStep, Staging, column_numbers
from stratoscope_server.engines.vllm.step import Delivery, LongArray, Region
from stratoscope_wire import Column
from stratoscope_wire.request import Dtype

logger = logging.getLogger(__name__)

TYPES: Final[dict[Dtype, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Courier:
    """Delivers steps, one after another.

    Parameters
    ----------
    link
        To the server.
    columns
        Every column of the model.
    place
        Of this worker.
    staging
        Where slots are given back.
    """

    def __init__(self, link: WorkerLink, columns: Sequence[Column], place: Place, staging: Staging) -> None:
        self._link = link
        self._columns = columns
        self._place = place
        self._staging = staging
        self._map = mmap.mmap(link.memory, 0)
        self._memory = torch.frombuffer(self._map, dtype=torch.uint8)
        self._orders: queue.SimpleQueue[StagedStep | Note] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="courier", daemon=True).start()

    def deliver(self, step: StagedStep) -> None:
        """Deliver a step's rows and tell the server; returns at once."""
        self._orders.put(step)

    def tell(self, note: Note) -> None:
        """Send a note after every step given before has been delivered."""
        self._orders.put(note)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while True:
                    order = self._orders.get()
                    self._link.send(order if isinstance(order, Note) else self._deliver(order))
        except BaseException:  # noqa: BLE001 - nothing may outlive a worker that cannot deliver
            logger.critical("rows cannot be delivered; the worker ends\n%s", traceback.format_exc())
            os._exit(1)

    def _deliver(self, step: StagedStep) -> Note:
        step.copied()
        for gather in step.gathers:
            self._deliver_gather(gather)
        self._staging.give_back()
        faults = (Fault(serial=serial, code="rows_missing", message=text) for serial, text in step.plan.holes.items())
        return Note(
            written=tuple(step.plan.completed),
            faults=tuple(faults),
            pass_prompts=step.plan.n_prompts,
            pass_tokens=step.plan.n_tokens,
        )

    def _deliver_gather(self, staged: StagedGather) -> None:
        columns = [self._columns[number] for number in column_numbers(staged.gather.columns)]
        runs = [run for run in staged.runs if len(run.owned)]
        for region, delivery in staged.gather.deliveries.items():
            for run in runs:
                _place(self._view(region, run, columns), delivery, run.plain)
        for index, mean in enumerate(staged.gather.means):
            if mean.done:
                for run in runs:
                    self._view(mean.region, run, columns)[:, mean.row] = run.pooled[:, index]

    def _view(self, region: Region, run: StagedRun, columns: Sequence[Column]) -> torch.Tensor:
        """Return this worker's columns of a region as a tensor of shape (n_owned, n_rows, width)."""
        dtype = TYPES[region.dtype]
        offsets = column_offsets(columns, region.n_rows, dtype.itemsize)
        start, width = run.run.slice(self._place)
        # Columns of a run are equally wide, so that they lie equally far apart.
        first = run.run.columns.start
        stride = (offsets[first + 1] - offsets[first]) // dtype.itemsize * run.owned.step
        begin = (region.offset + offsets[run.owned.start]) // dtype.itemsize + start
        return self._memory.view(dtype).as_strided(
            (len(run.owned), region.n_rows, width), (stride, run.run.width, 1), begin
        )


def _place(target: torch.Tensor, delivery: Delivery, staged: torch.Tensor) -> None:
    source, rows = _as_slice(delivery.staged), _as_slice(delivery.rows)
    if source is not None and rows is not None:
        target[:, rows] = staged[:, source]
    else:
        chosen = staged.index_select(1, torch.from_numpy(delivery.staged)).to(target.dtype)
        target.index_copy_(1, torch.from_numpy(delivery.rows), chosen)


def _as_slice(numbers: LongArray) -> slice | None:
    first, last = int(numbers[0]), int(numbers[-1])
    # Ascending by one each: n numbers from first to last, none left out.
    return slice(first, last + 1) if bool((np.diff(numbers) == 1).all()) else None
