"""The recorder: inside a worker, from the runner's steps and the model's taps to rows on their way out."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from stratoscope_server.engines.vllm.channel import Note
from stratoscope_server.engines.vllm.delivery import Courier
from stratoscope_server.engines.vllm.layout import Place
from stratoscope_server.engines.vllm.runner_v1 import RunnerStep, find_request
from stratoscope_server.engines.vllm.staging import CaptureError, StagedGather, StagedRun, Staging, column_numbers
from stratoscope_server.engines.vllm.step import Scheduled, StepPlan, plan_step
from stratoscope_server.engines.vllm.ticket import Ticket, serial_of
from stratoscope_server.engines.vllm.tracker import Tracker
from stratoscope_wire import Column


class _Followed:
    """A prompt being captured; its tokens are kept to check the runner's books against the batch itself."""

    def __init__(self, ticket: Ticket, prompt: Sequence[int]) -> None:
        self.tracker = Tracker(ticket)
        self._prompt = np.array(prompt, np.int32)

    def matches(self, token_ids: npt.NDArray[np.int32], start: int) -> bool:
        """Tell whether the batch holds this prompt's tokens where the runner says."""
        expected = self._prompt[start : start + len(token_ids)]
        return bool((token_ids[: len(expected)] == expected).all())


class _ActiveStep:
    """The step that is being computed: its plan, its buffers, and which columns are still to come."""

    def __init__(self, plan: StepPlan, gathers: list[StagedGather], columns: Sequence[Column]) -> None:
        self.plan = plan
        self.gathers = gathers
        self.slots: dict[str, list[tuple[StagedGather, StagedRun, int | None]]] = {}
        for staged in gathers:
            numbers = column_numbers(staged.gather.columns)
            for run in staged.runs:
                for place in run.run.columns:
                    slot = run.owned.index(place) if place in run.owned else None
                    self.slots.setdefault(columns[numbers[place]].name, []).append((staged, run, slot))
        self.pending = set(self.slots)


class Recorder:
    """Listens to one worker's runner and model.

    Parameters
    ----------
    runner
        The worker's model runner.
    columns
        Every column of the model.
    place
        Of this worker.
    staging
        Its buffers.
    courier
        Where rows go; ``None`` on a host that shares no memory with the server.
    """

    def __init__(
        self, runner: GPUModelRunner, columns: Sequence[Column], place: Place, staging: Staging, courier: Courier | None
    ) -> None:
        self._runner = runner
        self._columns = columns
        self._widths: Mapping[str, int] = {
            column.name: column.width // place.n_ranks if column.site == "heads" else column.width for column in columns
        }
        self._place = place
        self._staging = staging
        self._courier = courier
        self._followed: dict[str, _Followed | None] = {}
        self._step: _ActiveStep | None = None

    def on_step(self, step: RunnerStep) -> None:
        """Plan what the step gives; see `StepListener`."""
        if self._step is not None:
            raise CaptureError(f"a step began while {sorted(self._step.pending)} of the last were still to come")
        scheduled: list[Scheduled] = []
        foreign: dict[int, str] = {}
        batch_rows = np.cumsum(step.counts) - step.counts
        for request_id, start, count, row in zip(
            step.request_ids, step.starts.tolist(), step.counts.tolist(), batch_rows.tolist(), strict=True
        ):
            followed = self._follow(request_id)
            if followed is None:
                continue
            if followed.matches(step.token_ids[row : row + count], start):
                scheduled.append(Scheduled(followed.tracker, start, count, row))
            else:
                foreign[followed.tracker.ticket.serial] = (
                    f"the batch does not hold the prompt's tokens where vLLM's books say (position {start}, row {row})"
                )
        plan = plan_step(scheduled, len(step.token_ids))
        plan.n_prompts = len(step.request_ids)
        plan.holes.update(foreign)
        self._close(plan)
        if plan.gathers or plan.holes or plan.completed:
            self._step = _ActiveStep(plan, self._staging.begin(plan), self._columns)
        elif self._courier is not None:
            # A sign of life: a long prompt may take many steps until one has rows that are wanted.
            self._courier.tell(Note(pass_prompts=plan.n_prompts, pass_tokens=plan.n_tokens))

    def on_ended(self, request_ids: Sequence[str]) -> None:
        """Let go of requests that ended; see `StepListener`."""
        serials = [serial for serial in map(serial_of, request_ids) if serial >= 0]
        for request_id in request_ids:
            self._followed.pop(request_id, None)
        for serial in serials:
            self._staging.forget(serial)
        if serials and self._courier is not None:
            # Behind every row of theirs that is still on its way.
            self._courier.tell(Note(released=tuple(serials)))

    def on_states(self, column: str, states: torch.Tensor) -> None:
        """Copy the rows that the step needs of a column; called by the taps."""
        if self._step is None or column not in self._step.slots:
            return
        if column not in self._step.pending:
            raise CaptureError(f"column {column!r} was computed twice in one step")
        self._step.pending.remove(column)
        if states.ndim != 2 or states.shape[1] != self._widths[column] or len(states) < self._step.plan.n_tokens:
            raise CaptureError(
                f"column {column!r} has shape {tuple(states.shape)} in a step of {self._step.plan.n_tokens} tokens; "
                f"its rows have {self._widths[column]} values"
            )
        for staged, run, slot in self._step.slots[column]:
            self._copy(states, staged, run, slot)

    def on_forward_end(self) -> None:
        """Send the step's rows on their way."""
        step, self._step = self._step, None
        if step is None:
            return
        if step.pending:
            raise CaptureError(f"the model never computed {', '.join(sorted(step.pending))}")
        staged = self._staging.finish(step.plan, step.gathers)
        if self._courier is not None:
            self._courier.deliver(staged)
        else:
            self._staging.give_back()

    def _copy(self, states: torch.Tensor, staged: StagedGather, run: StagedRun, slot: int | None) -> None:
        if run.run.sharded and not self._place.slices_shards:
            # Every rank takes part, those that copy nothing out included.
            self._copy_gathered(states, staged, run, slot)
        elif slot is not None:
            if len(staged.source):
                torch.index_select(states, 0, staged.source, out=run.plain[slot])
            if len(staged.pooled_lengths):
                run.pooled[slot] = _sums(states, staged)

    def _copy_gathered(self, states: torch.Tensor, staged: StagedGather, run: StagedRun, slot: int | None) -> None:
        if len(staged.source):
            rows = tensor_model_parallel_all_gather(states.index_select(0, staged.source), dim=-1)
            if slot is not None:
                run.plain[slot] = rows
        if len(staged.pooled_lengths):
            sums = tensor_model_parallel_all_gather(_sums(states, staged), dim=-1)
            if slot is not None:
                run.pooled[slot] = sums

    def _follow(self, request_id: str) -> _Followed | None:
        if request_id not in self._followed:
            request = find_request(self._runner, request_id)
            ticket = Ticket.from_extra_args(request.extra_args)
            self._followed[request_id] = None if ticket is None else _Followed(ticket, request.prompt)
        return self._followed[request_id]

    def _close(self, plan: StepPlan) -> None:
        """Never again touch what a plan completes or gives up: its region may soon be another's."""
        ended = {*plan.completed, *plan.holes}
        for request_id, followed in self._followed.items():
            if followed is not None and followed.tracker.ticket.serial in ended:
                self._followed[request_id] = None


def _sums(states: torch.Tensor, staged: StagedGather) -> torch.Tensor:
    """Return the float32 sums of shape (n_means, width) of the rows that belong to each mean."""
    chosen = states.index_select(0, staged.pooled_source).float()
    # Unsafe means that the lengths are not checked, for which the host would have to wait for the device.
    return torch.segment_reduce(chosen, "sum", lengths=staged.pooled_lengths, axis=0, unsafe=True)
