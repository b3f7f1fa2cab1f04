"""A group: a few prompts of one request that share a region, and who may still write to it."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_server.engines.vllm.channel import Fault
from stratoscope_server.engines.vllm.layout import column_offsets
from stratoscope_wire import Column
from stratoscope_wire.dtypes import value_bytes
from stratoscope_wire.request import Dtype

TARGET_BYTES: Final = 4 << 20
"""Groups are closed at about this size; a single prompt is never split."""

Key = tuple[int, int]
"""Serial of a prompt, and exit of a worker."""


class Group:
    """Prompts whose rows leave together.

    Parameters
    ----------
    prompts
        By serial, in the order of their rows.
    offset
        Of the region.
    n_exits
        Number of workers that write to it.
    """

    def __init__(self, prompts: dict[int, Prompt], offset: int, n_exits: int) -> None:
        self.prompts = prompts
        self.offset = offset
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Completes when every row is there, or fails."""
        self.submission: asyncio.Task[None] | None = None
        """Hands the prompts over to vLLM."""
        self.is_concluded = False
        """Whether nobody reads the region any more."""
        self._unwritten: set[Key] = {(serial, exit_) for serial in prompts for exit_ in range(n_exits)}
        self._held = set(self._unwritten)

    @property
    def is_held(self) -> bool:
        """Whether some worker may still write to the region."""
        return bool(self._held)

    def written(self, key: Key) -> None:
        """Take in that a worker has written all its rows of a prompt, and will not touch them again."""
        self._held.discard(key)
        self._unwritten.discard(key)
        if not self._unwritten and not self.done.done():
            self.done.set_result(None)

    def released(self, key: Key) -> None:
        """Take in that a worker knows of a prompt's end in the engine, and will not touch its rows again."""
        self._held.discard(key)
        if key in self._unwritten:
            stimulus = self.prompts[key[0]].stimulus_id
            self.fail(EngineError("rows_missing", f"stimulus {stimulus!r} ended without all its rows", retryable=True))

    def faulted(self, fault: Fault, exit_: int) -> None:
        """Take in that a worker has given a prompt up, and will not touch its rows again."""
        self._held.discard((fault.serial, exit_))
        stimulus = self.prompts[fault.serial].stimulus_id
        self.fail(EngineError(fault.code, f"stimulus {stimulus!r}: {fault.message}", status=fault.status))

    def withdraw(self, serial: int) -> None:
        """Take in that a prompt never reached the engine."""
        self._held = {key for key in self._held if key[0] != serial}

    def fail(self, error: EngineError) -> None:
        """Give the group up."""
        if not self.done.done():
            self.done.set_exception(error)
            # Retrieved here, so that a group nobody waits for any more does not complain about it.
            self.done.exception()


def region_bytes(prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> int:
    """Return the size of the region of some prompts."""
    n_rows = sum(prompt.n_rows for prompt in prompts)
    return column_offsets(columns, n_rows, value_bytes(dtype))[-1]


def split_groups(prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Iterator[list[Prompt]]:
    """Split a request's prompts into groups of about `TARGET_BYTES`, in their order."""
    row_bytes = sum(column.width for column in columns) * value_bytes(dtype)
    group: list[Prompt] = []
    n_bytes = 0
    for prompt in prompts:
        if group and n_bytes + prompt.n_rows * row_bytes > TARGET_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(prompt)
        n_bytes += prompt.n_rows * row_bytes
    yield group
