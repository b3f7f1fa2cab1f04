"""Every site, layer and position against Hugging Face, architecture by architecture, and against the torch engine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.torch.architectures import FAMILIES
from stratoscope_server.engines.torch.engine import load_runner
from stratoscope_server.settings import Settings
from stratoscope_wire.sites import SITES

States = dict[str, np.ndarray]

BOUND = 1e-5
LONG = "A church and organ in the old town, and the town listens to the organ every day. " * 5


@pytest.mark.parametrize(
    ("architecture", "ranks"),
    [
        ("llama", 1),
        ("llama", 2),
        ("qwen2", 1),
        ("qwen3", 1),
        ("gemma2", 1),
        ("gemma3_text", 1),
        ("mixtral", 1),
        ("mistral", 1),
        ("phi3", 1),
    ],
)
def test_every_site_layer_and_position_is_hugging_faces(
    architecture: str,
    ranks: int,
    start_engine: Callable[..., Any],
    vllm_folder: Callable[[str], Path],
    reference: Callable[..., Any],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    folder = vllm_folder(architecture)
    with start_engine(folder, tensor_parallel_size=ranks) as running:
        prompts = running.prompts([*texts, LONG])
        assert max(prompt.n_tokens for prompt in prompts) > running.options.step_tokens, "no prompt comes in chunks"
        found = running.capture(prompts)
    errors = errors_by_column(found, {p.stimulus_id: reference(folder, p) for p in prompts}, distance)
    print(f"PARITY {architecture} on {ranks}: {max(errors.values()):.2e}")  # noqa: T201 - shown by pytest -rP
    assert max(errors.values()) <= BOUND, {column: error for column, error in errors.items() if error > BOUND}


def errors_by_column(
    found: dict[str, States], expected: dict[str, States], distance: Callable[..., float]
) -> dict[str, float]:
    """Relative L2 per column over all positions of all prompts."""
    assert found.keys() == expected.keys()
    columns = next(iter(expected.values())).keys()
    assert all(states.keys() == columns for states in found.values())
    return {
        column: distance(
            np.concatenate([found[prompt][column] for prompt in expected]),
            np.concatenate([states[column] for states in expected.values()]),
        )
        for column in columns
    }


def test_the_embedded_model_agrees_with_hugging_face_and_with_the_torch_engine(
    start_engine: Callable[..., Any],
    reference: Callable[..., Any],
    texts: Sequence[str],
    distance: Callable[..., float],
) -> None:
    folder = resolve_source("smollm2-135m", None, Settings().cache_dir, supported=FAMILIES).folder
    with start_engine("smollm2-135m", max_batch_tokens=32) as running:
        prompts = running.prompts([*texts, LONG])
        assert max(prompt.n_tokens for prompt in prompts) > running.options.step_tokens
        found = running.capture(prompts)
        card = running.engine.card
    torch_runner = load_runner(
        "smollm2-135m", revision=None, dtype="float32", device="cpu", cache_dir=Settings().cache_dir
    )
    assert [card.n_layers, card.sites] == [30, torch_runner.card.sites]
    assert card.fingerprint != torch_runner.card.fingerprint
    columns = card.columns(list(SITES))
    ours = {
        prompt.stimulus_id: {
            column.name: values
            for column, values in zip(columns, torch_runner.run([prompt], columns, "float32").values, strict=True)
        }
        for prompt in prompts
    }
    theirs = {prompt.stimulus_id: reference(folder, prompt) for prompt in prompts}
    for name, expected in (("hugging face", theirs), ("torch engine", ours)):
        errors = errors_by_column(found, expected, distance)
        print(f"PARITY smollm2 with {name}: {max(errors.values()):.2e}")  # noqa: T201
        assert max(errors.values()) <= BOUND, {column: error for column, error in errors.items() if error > BOUND}
