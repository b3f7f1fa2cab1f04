"""From a model's name to an engine that serves it."""

from pathlib import Path

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.torch.card import build_card
from stratoscope_server.engines.torch.loading import load_model
from stratoscope_server.engines.torch.runner import TorchRunner
from stratoscope_server.engines.torch.selfcheck import check_sites
from stratoscope_server.engines.torch.source import resolve_source
from stratoscope_server.engines.torch.tokenizing import TorchTokenizer

"""For a CPU: short texts of mixed lengths lose more to padding in larger batches than they gain. A GPU wants more."""


def load_runner(model: str, *, revision: str | None, dtype: str, device: str, cache_dir: Path) -> TorchRunner:
    """Load a model and check that its sites are where they should be; see `load_engine`."""
    source = resolve_source(model, revision, cache_dir)
    tokenizer = TorchTokenizer(source.folder)
    loaded = load_model(source, dtype=dtype, device=device)
    runner = TorchRunner(loaded, tokenizer, build_card(source, loaded, tokenizer.hash))
    check_sites(runner)
    return runner


def load_engine(
    model: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    max_batch_tokens: int,
    cache_dir: Path,
) -> BatchedEngine:
    """Load a model and return the engine that serves it.

    Parameters
    ----------
    model
        ``smollm2-135m``, a local folder, or a model id on the Hugging Face hub.
    revision
        Branch, tag or commit on the hub; ``None`` for its default, and for any other model.
    dtype
        ``float32``, ``bfloat16``, or ``auto`` for the checkpoint's.
    device
        ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``auto`` for a GPU where there is one.
    max_batch_tokens
        Padded tokens per batch, at most.
    cache_dir
        Where the converted embedded model is kept.

    Raises
    ------
    ModelRefusedError
        If the model cannot be served, or not correctly.
    """
    runner = load_runner(model, revision=revision, dtype=dtype, device=device, cache_dir=cache_dir)
    return BatchedEngine(runner, max_batch_tokens)
