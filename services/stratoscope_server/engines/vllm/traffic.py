"""Traffic: prompts on their way through vLLM, and the regions that their rows go to.

Belongs to the server's event loop. A region is given back only when no worker can write to it any more: each has either
written all rows of each of its prompts, given the prompt up, or seen its request end.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Coroutine, Sequence

import numpy as np
from vllm.v1.engine.async_llm import AsyncLLM

from stratoscope_server.engines.protocol import EngineError, Job, Prompt
from stratoscope_server.engines.sizes import Passes
from stratoscope_server.engines.vllm.arena import Arena
from stratoscope_server.engines.vllm.channel import Note
from stratoscope_server.engines.vllm.group import Group, region_bytes
from stratoscope_server.engines.vllm.launch import prefill, tokens
from stratoscope_server.engines.vllm.ticket import Ticket, row_fields

logger = logging.getLogger(__name__)


class Traffic:
    """Admits groups of prompts to vLLM and follows them until their regions are free again.

    Parameters
    ----------
    llm
        The running engine.
    arena
        Where regions come from.
    numbers
        Number of each column of the model, by name.
    n_exits
        Number of workers that write rows.
    """

    def __init__(self, llm: AsyncLLM, arena: Arena, numbers: dict[str, int], n_exits: int) -> None:
        self._llm = llm
        self._arena = arena
        self._numbers = numbers
        self._n_exits = n_exits
        self._serials = itertools.count()
        self._groups: dict[int, Group] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.wait_seconds = 0.0
        """Time that groups have waited for room, summed."""
        self.last_sign = time.monotonic()
        """When the engine was last heard of, or was first given work."""
        self.passes = Passes()
        """Steps of the engine."""

    @property
    def n_prompts(self) -> int:
        """Prompts whose regions are not free yet."""
        return len(self._groups)

    @property
    def n_running(self) -> int:
        """Prompts that the engine has yet to do something for."""
        return sum(group.is_held for group in self._groups.values())

    async def admit(self, prompts: Sequence[Prompt], job: Job, rotation: int) -> Group:
        """Wait for a region, then hand the prompts to vLLM.

        Cancelling this gives the region back.
        """
        began = time.monotonic()
        offset = await self._arena.reserve(region_bytes(prompts, job.columns, job.dtype))
        self.wait_seconds += time.monotonic() - began
        if not self.n_running:
            self.last_sign = time.monotonic()
        group = Group({next(self._serials): prompt for prompt in prompts}, offset, self._n_exits)
        self._groups |= dict.fromkeys(group.prompts, group)
        # A task of its own: a request that was half handed over when its reader left could not be aborted for certain.
        group.submission = self._spawn(self._submit(group, job, rotation))
        return group

    def conclude(self, group: Group) -> None:
        """Let a group go: its rows have been sent, or nobody wants them any more."""
        group.is_concluded = True
        if group.is_held:
            self._spawn(self._abort(group))
        self._settle(group)

    def take_note(self, exit_: int, note: Note) -> None:
        """Take in what a worker told."""
        self.last_sign = time.monotonic()
        # Every rank tells of every step.
        if exit_ == 0 and note.pass_tokens:
            self.passes.add(note.pass_prompts, note.pass_tokens)
        for serial in note.written:
            if group := self._groups.get(serial):
                group.written((serial, exit_))
                self._settle(group)
        for fault in note.faults:
            if group := self._groups.get(fault.serial):
                group.faulted(fault, exit_)
                self._settle(group)
        for serial in note.released:
            if group := self._groups.get(serial):
                group.released((serial, exit_))
                self._settle(group)

    def fail(self, error: EngineError) -> None:
        """Give up everything that is on its way."""
        for group in set(self._groups.values()):
            group.fail(error)

    async def _submit(self, group: Group, job: Job, rotation: int) -> None:
        columns = np.array([self._numbers[column.name] for column in job.columns], "<u2").tobytes()
        n_rows = sum(prompt.n_rows for prompt in group.prompts.values())
        row = 0
        for serial, prompt in group.prompts.items():
            ticket = Ticket(
                serial=serial,
                columns=columns,
                dtype=job.dtype,
                rotation=rotation,
                offset=group.offset,
                n_rows=n_rows,
                first_row=row,
                **row_fields(prompt),
            )
            row += prompt.n_rows
            params = prefill(ticket.to_extra_args(), may_read_cache=needs_last_only(prompt))
            try:
                await self._llm.add_request(ticket.request_id, tokens(prompt.token_ids), params)
            except Exception as error:  # noqa: BLE001 - whatever vLLM raises, the group fails with it
                group.withdraw(serial)
                group.fail(EngineError("engine_refused", f"stimulus {prompt.stimulus_id!r}: vLLM refused it: {error}"))
                self._settle(group)

    async def _abort(self, group: Group) -> None:
        if group.submission is not None:
            await group.submission
        await self._llm.abort([str(serial) for serial in group.prompts])

    def _settle(self, group: Group) -> None:
        if group.is_concluded and not group.is_held and group.prompts.keys() & self._groups.keys():
            for serial in group.prompts:
                del self._groups[serial]
            self._arena.release(group.offset)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a request could not be handed to vLLM or taken back", exc_info=error)


def needs_last_only(prompt: Prompt) -> bool:
    """Tell whether a prompt's rows all lie at its last token, which the prefix cache never replaces."""
    return all(bool((spec.positions == prompt.n_tokens - 1).all()) for spec in prompt.rows)
