"""Admission: everything that can be refused is refused here, before the model runs and the first byte is sent."""

from dataclasses import dataclass

import numpy as np

from stratoscope_server.engines.protocol import Encoded, Engine, EngineError, Job, Prompt
from stratoscope_server.problems import ApiError, engine_problem
from stratoscope_server.selection import select_rows
from stratoscope_wire import ActivationsRequest, Column, Limits, Plan, PlannedStimulus, Stimulus
from stratoscope_wire.compression import Compression
from stratoscope_wire.dtypes import value_bytes


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that will be answered: the job for the engine, its exact cost, and how the answer is packed."""

    job: Job
    plan: Plan
    compression: Compression | None


def admit(request: ActivationsRequest, request_id: str, engine: Engine, limits: Limits) -> Admitted:
    """Check a request against model and limits, tokenise it and resolve its selectors.

    Raises
    ------
    ApiError
        422 where the request or a stimulus cannot be answered, 413 where there is too much of it.
    """
    _refuse_above("stimuli", len(request.stimuli), limits.max_stimuli, 422, "too_many_stimuli", "send several requests")
    columns = _columns(request, engine)
    prompts: list[Prompt] = []
    n_tokens = 0
    for index, stimulus in enumerate(request.stimuli):
        prompts.append(_prompt(request, index, engine, limits))
        n_tokens += prompts[-1].n_tokens
        if n_tokens > limits.max_tokens_per_request:
            raise ApiError(
                413,
                "too_many_tokens",
                f"the request has more than {limits.max_tokens_per_request} tokens, reached at stimulus "
                f"{stimulus.id!r}; send fewer stimuli per request",
                stimulus=stimulus.id,
                limit=limits.max_tokens_per_request,
            )
    plan = _plan(request, prompts, columns, engine)
    _refuse_response(plan, limits)
    job = Job(request_id, tuple(prompts), columns, request.dtype)
    try:
        engine.refuse(job)
    except EngineError as error:
        raise engine_problem(error) from error
    return Admitted(job, plan, request.compression)


def _columns(request: ActivationsRequest, engine: Engine) -> tuple[Column, ...]:
    try:
        return engine.card.columns(request.capture.sites, request.capture.layers)
    except ValueError as error:
        field = "capture.layers" if "layer" in str(error) else "capture.sites"
        raise ApiError(422, "invalid_request", f"{field}: {error}", field=field) from None


def _prompt(request: ActivationsRequest, index: int, engine: Engine, limits: Limits) -> Prompt:
    stimulus = request.stimuli[index]
    field = f"stimuli[{index}]"
    encoded = _encode(request, stimulus, field, engine, limits)
    n_tokens = len(encoded.token_ids)
    if n_tokens == 0:
        raise _refusal(stimulus, field, "no_tokens", "has no tokens, so there is no state to read")
    if n_tokens > limits.max_tokens_per_text:
        raise _refusal(
            stimulus,
            field,
            "text_too_long",
            f"has {n_tokens} tokens; at most {limits.max_tokens_per_text} are accepted, and nothing is truncated",
            limit=limits.max_tokens_per_text,
            value=n_tokens,
        )
    try:
        rows = select_rows(request.capture.select, n_tokens, stimulus.spans, encoded.offsets)
    except ValueError as error:
        raise _refusal(stimulus, field, "invalid_selection", str(error)) from None
    return Prompt(stimulus.id, encoded.token_ids, rows)


def _encode(request: ActivationsRequest, stimulus: Stimulus, field: str, engine: Engine, limits: Limits) -> Encoded:
    n_characters = len(stimulus.text or "") + sum(len(message.content) for message in stimulus.messages or ())
    if n_characters > limits.max_characters_per_text:
        raise _refusal(
            stimulus,
            field,
            "text_too_long",
            f"has {n_characters} characters; at most {limits.max_characters_per_text} are accepted",
            limit=limits.max_characters_per_text,
            value=n_characters,
        )
    if stimulus.token_ids is not None:
        largest = engine.card.vocab_size - 1
        too_large = [token for token in stimulus.token_ids if token > largest]
        if too_large:
            fault = f"has token id {too_large[0]}; the vocabulary ends at {largest}"
            raise _refusal(stimulus, f"{field}.token_ids", "unknown_token", fault)
        ids = np.array(stimulus.token_ids, np.int32)
        return Encoded(ids, np.zeros((len(ids), 2), np.int32))
    if stimulus.text is not None:
        return engine.tokenizer.encode(stimulus.text, add_special_tokens=request.add_special_tokens)
    try:
        return engine.tokenizer.encode_chat(stimulus.messages or [])
    except ValueError as error:
        raise _refusal(stimulus, f"{field}.messages", "invalid_messages", str(error)) from None


def _plan(request: ActivationsRequest, prompts: list[Prompt], columns: tuple[Column, ...], engine: Engine) -> Plan:
    n_rows = sum(prompt.n_rows for prompt in prompts)
    return Plan(
        stimuli=tuple(PlannedStimulus(id=p.stimulus_id, n_tokens=p.n_tokens, n_rows=p.n_rows) for p in prompts),
        columns=tuple(column.name for column in columns),
        n_tokens=sum(prompt.n_tokens for prompt in prompts),
        n_rows=n_rows,
        bytes=n_rows * sum(column.width for column in columns) * value_bytes(request.dtype),
        fingerprint=engine.card.fingerprint,
    )


def _refuse_response(plan: Plan, limits: Limits) -> None:
    if plan.bytes <= limits.max_response_bytes:
        return
    row_bytes = plan.bytes // plan.n_rows
    fitting, rows = 0, 0
    for stimulus in plan.stimuli:
        rows += stimulus.n_rows
        if rows * row_bytes > limits.max_response_bytes:
            break
        fitting += 1
    raise ApiError(
        413,
        "response_too_large",
        f"the answer would hold {plan.bytes} bytes of activations; at most {limits.max_response_bytes} are sent. The "
        f"first {fitting} stimuli would fit; or ask for fewer sites, layers or positions",
        field="stimuli",
        limit=limits.max_response_bytes,
        value=plan.bytes,
    )


def _refuse_above(what: str, value: int, limit: int, status: int, code: str, fix: str) -> None:
    if value > limit:
        message = f"the request has {value} {what}; at most {limit} are accepted: {fix}"
        raise ApiError(status, code, message, field=what, limit=limit, value=value)


def _refusal(
    stimulus: Stimulus, field: str, code: str, fault: str, *, limit: int | None = None, value: int | None = None
) -> ApiError:
    message = f"stimulus {stimulus.id!r} {fault}" if fault.startswith("has ") else f"stimulus {stimulus.id!r}: {fault}"
    return ApiError(422, code, message, field=field, stimulus=stimulus.id, limit=limit, value=value)
