"""What goes wrong in a batch is told: no hole, no swallowed error."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from stratoscope_server.engines.arranging import apart
from stratoscope_server.engines.protocol import EngineError, Prompt, RowSpec
from stratoscope_server.engines.torch.layout import lay_out
from stratoscope_server.engines.torch.recorder import Recorder
from stratoscope_wire import Column
from stratoscope_wire.sites import SITES


def test_an_error_in_a_hook_reaches_the_caller_and_nothing_is_read_after_it(
    fresh_llama: Any,
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_self: Recorder, column: str, states: Any) -> None:
        assert states.shape[-1] == 32
        raise RuntimeError(f"no room for {column}")

    monkeypatch.setattr(Recorder, "write", fail)
    with pytest.raises(RuntimeError, match="no room for embed"):
        capture(fresh_llama, prompts_of(fresh_llama, texts), list(SITES))
    # A pass that nobody reads would fail again if the reader were left.
    fresh_llama._loaded.module(input_ids=torch.zeros(1, 4, dtype=torch.int64), use_cache=False)


def test_a_column_that_the_model_never_computes_is_an_error(
    fresh_llama: Any,
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = prompts_of(fresh_llama, texts)
    monkeypatch.setattr(fresh_llama._loaded.module.layers[1], "mlp", torch.nn.Identity())
    capture(fresh_llama, prompts, ["mlp_out"], layers=[0, 2])
    with pytest.raises(EngineError, match=r"never computed mlp_out\.1$") as caught:
        capture(fresh_llama, prompts, ["mlp_out"])
    assert caught.value.code == "column_missing"


def test_a_column_that_is_computed_twice_is_an_error(
    load_tiny: Callable[..., Any], prompts_of: Callable[..., list[Prompt]]
) -> None:
    runner = load_tiny("llama")
    batch = lay_out(prompts_of(runner, ["one"]), apart)
    recorder = Recorder(batch, runner.card.columns(["resid_post"]), "float32", torch.device("cpu"))
    states = torch.ones(*batch.token_ids.shape, 32)
    recorder.write("resid_post.0", states)
    with pytest.raises(EngineError, match=r"'resid_post\.0' was computed twice"):
        recorder.write("resid_post.0", states)


def test_states_of_another_width_are_an_error(
    load_tiny: Callable[..., Any], prompts_of: Callable[..., list[Prompt]]
) -> None:
    runner = load_tiny("llama")
    batch = lay_out(prompts_of(runner, ["one"]), apart)
    recorder = Recorder(batch, [Column("embed", None, 32, 0)], "float32", torch.device("cpu"))
    with pytest.raises(EngineError, match="has shape") as caught:
        recorder.write("embed", torch.ones(*batch.token_ids.shape, 31))
    assert caught.value.code == "bad_shape"


def test_states_that_are_overwritten_later_keep_their_value(
    load_tiny: Callable[..., Any], prompts_of: Callable[..., list[Prompt]]
) -> None:
    runner = load_tiny("llama")
    batch = lay_out(prompts_of(runner, ["one"]), apart)
    recorder = Recorder(batch, runner.card.columns(["resid_post"], [0, 1]), "float32", torch.device("cpu"))
    states = torch.ones(*batch.token_ids.shape, 32)
    recorder.write("resid_post.0", states)
    states.mul_(5)
    with pytest.raises(BaseException, match=r"^$"):
        recorder.write("resid_post.1", states)
    first, second = recorder.finish()
    assert (first == 1).all()
    assert (second == 5).all()


def test_out_of_memory_is_told_as_retryable(
    fresh_llama: Any,
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
    texts: Sequence[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_batch: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fresh_llama, "_forward", fail)
    with pytest.raises(EngineError, match="fewer tokens per batch") as caught:
        capture(fresh_llama, prompts_of(fresh_llama, texts))
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("engine_oom", 503, True)


@pytest.mark.parametrize(
    ("token_ids", "positions", "code"),
    [
        ([0] * 129, [0], "stimulus_too_long"),
        ([5, 10**6], [0], "unknown_token"),
        ([5, -1], [0], "unknown_token"),
        ([], [0], "empty_stimulus"),
        ([5, 6], [2], "bad_positions"),
        ([5, 6], [-1], "bad_positions"),
        ([5, 6], [], "bad_positions"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_by_name(
    token_ids: list[int],
    positions: list[int],
    code: str,
    load_tiny: Callable[..., Any],
    capture: Callable[..., list[dict[str, Any]]],
    prompts_of: Callable[..., list[Prompt]],
) -> None:
    runner = load_tiny("llama")
    rows = (RowSpec("odd", np.array(positions, np.int32), pooled=False),)
    bad = Prompt("bad one", np.array(token_ids, np.int32), rows)
    with pytest.raises(EngineError, match="'bad one'") as caught:
        capture(runner, [*prompts_of(runner, ["one"]), bad])
    assert caught.value.code == code


def test_the_longest_prompt_the_card_allows_is_captured(
    load_tiny: Callable[..., Any], capture: Callable[..., list[dict[str, Any]]]
) -> None:
    runner = load_tiny("gpt2")
    assert runner.card.max_tokens == 128
    rows = (RowSpec("last", np.array([127], np.int32), pooled=False),)
    [states] = capture(runner, [Prompt("long", np.full(128, 7, np.int32), rows)])
    assert states["final_norm"].shape == (1, 32)
