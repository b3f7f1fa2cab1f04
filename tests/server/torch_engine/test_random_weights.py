"""The untrained twin: the same architecture and tokenizer, weights drawn by a seed, and never taken for the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from stratoscope_server.engines.torch.engine import load_runner
from stratoscope_server.engines.torch.runner import TorchRunner

Twin = Callable[[int | None], TorchRunner]


@pytest.fixture
def twin(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Twin:
    """Load the tiny llama, or its twin of a seed."""

    def load(seed: int | None) -> TorchRunner:
        folder = str(tiny_folder("llama"))
        return load_runner(
            folder, revision=None, dtype="float32", device="cpu", cache_dir=tmp_path, random_weights=seed
        )

    return load


def deepest(
    runner: TorchRunner, prompts_of: Callable[..., Any], capture: Callable[..., Any], texts: Sequence[str]
) -> Any:
    states = capture(runner, prompts_of(runner, texts[:2]))[0]
    return states[f"resid_post.{runner.card.n_layers - 1}"]


def test_a_seed_gives_the_same_twin_another_seed_another(
    twin: Twin, prompts_of: Callable[..., Any], capture: Callable[..., Any], texts: Sequence[str]
) -> None:
    first, again, other, trained = (deepest(twin(seed), prompts_of, capture, texts) for seed in (1, 1, 2, None))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - trained).max() > 1e-3


def test_the_twins_weights_are_those_its_architecture_starts_training_with(
    twin: Twin, tiny_folder: Callable[[str], Path], prompts_of: Callable[..., Any], capture: Callable[..., Any],
    texts: Sequence[str],
) -> None:  # fmt: skip
    runner = twin(5)
    config = AutoConfig.from_pretrained(tiny_folder("llama"))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]
        reference = drawn.eval()
    prompt = prompts_of(runner, texts[:1])[0]
    with torch.no_grad():
        ids = torch.tensor(prompt.token_ids, dtype=torch.long)[None]
        expected = reference(ids, output_hidden_states=True).hidden_states[1][0].numpy()
    found = capture(runner, [prompt])[0]["resid_post.0"]
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


def test_a_twin_is_named_apart_from_the_model_and_from_other_twins(twin: Twin) -> None:
    trained, one, two = (twin(seed).card for seed in (None, 1, 2))
    assert len({card.fingerprint for card in (trained, one, two)}) == 3
    assert one.model == f"{trained.model}-random-1"
    assert one.revision == f"random weights, seed 1, of {trained.revision}"


def test_drawing_a_twin_leaves_the_programs_random_numbers_alone(twin: Twin) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    twin(7)
    assert torch.equal(torch.rand(3), expected)
