"""The seam to vLLM's V1 model runner: the one module that knows how it keeps its books.

What is read here, and when, was checked in vLLM 0.32. `_prepare_inputs` is called once per step, after the batch has
its final order, with the number of tokens of each request in that order; `input_batch` then says which request each is
and how many of its tokens were computed before, and `input_ids` holds the batch's token ids. `_update_states` is called
once per step, empty ones included, with the requests that ended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from stratoscope_server.engines.protocol import IntArray


@dataclass(frozen=True, slots=True)
class RunnerStep:
    """One step, in the runner's own order.

    Attributes
    ----------
    request_ids
        vLLM's ids.
    starts, counts : int32 arrays of shape (n_requests,)
        Absolute position of each request's first token in this step, and how many it has.
    token_ids : int32 array of shape (n_tokens,)
        Of the whole batch, as the model gets them.
    """

    request_ids: Sequence[str]
    starts: IntArray
    counts: IntArray
    token_ids: IntArray


@dataclass(frozen=True, slots=True)
class RunnerRequest:
    """A request: its prompt's token ids and its ``extra_args``."""

    prompt: Sequence[int]
    extra_args: Mapping[str, Any] | None


class StepListener(Protocol):
    """Hears of every step before the model runs."""

    def on_step(self, step: RunnerStep) -> None:
        """Take note of a step."""
        ...

    def on_ended(self, request_ids: Sequence[str]) -> None:
        """Take note of requests that ended, whether finished or aborted."""
        ...


class UnsupportedRunnerError(RuntimeError):
    """The model runner is not the one this seam is written for."""


def check_runner(runner: object) -> GPUModelRunner:
    """Return the runner if it is V1's.

    Raises
    ------
    UnsupportedRunnerError
        If it is another.
    """
    if not isinstance(runner, GPUModelRunner):
        kind = f"{type(runner).__module__}.{type(runner).__qualname__}"
        raise UnsupportedRunnerError(
            f"vLLM chose the model runner {kind}, in which no row could be told from another; only its V1 runner is "
            "supported: set VLLM_USE_V2_MODEL_RUNNER=0"
        )
    return runner


def find_request(runner: GPUModelRunner, request_id: str) -> RunnerRequest:
    """Return what a runner holds of a request."""
    state = runner.requests[request_id]
    extra_args = state.sampling_params.extra_args if state.sampling_params is not None else None
    return RunnerRequest(state.prompt_token_ids or (), extra_args)


def listen(runner: GPUModelRunner, listener: StepListener) -> None:
    """Tell a listener of every step of a runner from now on."""
    prepare, update = runner._prepare_inputs, runner._update_states

    def prepare_inputs(scheduler_output: Any, num_scheduled_tokens: npt.NDArray[np.int32]) -> Any:  # noqa: ANN401
        prepared = prepare(scheduler_output, num_scheduled_tokens)
        batch = runner.input_batch
        n_requests, n_tokens = batch.num_reqs, int(num_scheduled_tokens.sum())
        listener.on_step(
            RunnerStep(
                tuple(batch.req_ids),
                batch.num_computed_tokens_cpu[:n_requests].astype(np.int32),
                num_scheduled_tokens[:n_requests].astype(np.int32),
                runner.input_ids.cpu[:n_tokens].numpy(),
            )
        )
        return prepared

    def update_states(scheduler_output: Any) -> Any:  # noqa: ANN401
        listener.on_ended(tuple(scheduler_output.finished_req_ids))
        return update(scheduler_output)

    # Set on the instance: the class, and so any other runner, stays as it is.
    cast(Any, runner)._prepare_inputs = prepare_inputs
    cast(Any, runner)._update_states = update_states


def on_forward_end(runner: GPUModelRunner, act: Callable[[], None]) -> None:
    """Call a function each time the model's forward pass has been launched."""

    def after(_module: object, _args: object, _output: object) -> None:
        act()

    runner.model.register_forward_hook(after)
