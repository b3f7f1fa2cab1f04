"""From a model's name to an engine that serves it."""

from dataclasses import replace
from pathlib import Path

import torch

from stratoscope_server.engines.batched import BatchedEngine
from stratoscope_server.engines.pretrained.card import build_card
from stratoscope_server.engines.pretrained.errors import ModelRefusedError
from stratoscope_server.engines.pretrained.source import resolve_source
from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.engines.protocol import DEFAULT_STALL_SECONDS, EngineError
from stratoscope_server.engines.selfcheck import check_sums, known_prompt, states_of
from stratoscope_server.engines.torch.architectures import FAMILIES
from stratoscope_server.engines.torch.lanes import lanes_on
from stratoscope_server.engines.torch.loading import load_model
from stratoscope_server.engines.torch.prefixes import shares_prefixes
from stratoscope_server.engines.torch.runner import TorchRunner
from stratoscope_wire import ModelCard
from stratoscope_wire.sites import SITES


def load_runner(
    model: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    cache_dir: Path,
    random_weights: int | None = None,
    checkpoint_sha256: Path | None = None,
) -> TorchRunner:
    """Load a model and check that its sites are where they should be; see `load_engine`."""
    source = resolve_source(model, revision, cache_dir, supported=FAMILIES, sums=checkpoint_sha256)
    tokenizer = FastTokenizer(source.folder)
    loaded = load_model(source, dtype=dtype, device=device, random_weights=random_weights)
    if random_weights is not None:
        # Named apart everywhere, so that nobody takes the numbers of a twin for those of the model.
        drawn = f"random weights, seed {random_weights}, of {source.revision}"
        source = replace(source, name=f"{source.name}-random-{random_weights}", revision=drawn)
    where = loaded.device
    card = build_card(
        source,
        loaded.config,
        dtype=loaded.dtype,
        tokenizer_hash=tokenizer.hash,
        engine="torch",
        versions={
            "attention": str(loaded.config._attn_implementation),
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
    )
    runner = TorchRunner(loaded, tokenizer, _card_with(card, prefixes="computed once"))
    _check(runner)
    if shares_prefixes(runner):
        return runner
    return TorchRunner(loaded, tokenizer, _card_with(card, prefixes="computed for each text"), merge=False)


def load_engine(
    model: str,
    *,
    revision: str | None,
    dtype: str,
    device: str,
    cache_dir: Path,
    max_batch_tokens: int | None = None,
    random_weights: int | None = None,
    stall_seconds: float = DEFAULT_STALL_SECONDS,
    checkpoint_sha256: Path | None = None,
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
        ``cpu``, ``cuda``, ``cuda:1`` and so on, or ``auto`` for a GPU where there is one;
        several such as ``cuda:0,cuda:1`` share the layers.
    max_batch_tokens
        Tokens per batch, at most, padding counted and a shared prefix once; ``None`` for the default.
    cache_dir
        Where the converted embedded model is kept.
    random_weights
        Seed of an untrained twin: the same architecture and tokenizer with weights drawn at random.
    stall_seconds
        A batch that runs longer will never end: the engine counts as dead.
    checkpoint_sha256
        A list such as ``sha256sum`` writes, which every file of the checkpoint must be in.

    Raises
    ------
    ModelRefusedError
        If the model cannot be served, or not correctly.
    """
    runner = load_runner(
        model,
        revision=revision,
        dtype=dtype,
        device=device,
        cache_dir=cache_dir,
        random_weights=random_weights,
        checkpoint_sha256=checkpoint_sha256,
    )
    lanes = lanes_on(runner.device)
    return BatchedEngine(
        runner, max_batch_tokens, stall_seconds, merge=runner.merge, lanes=lanes.count, enter_lane=lanes.enter
    )


def _card_with(card: ModelCard, **versions: str) -> ModelCard:
    return card.model_copy(update={"versions": {**card.versions, **versions}}).signed()


def _check(runner: TorchRunner) -> None:
    columns = runner.card.columns(list(SITES))
    try:
        block = runner.run([known_prompt(runner.tokenizer)], columns, "float32")
    except EngineError as error:
        raise ModelRefusedError(f"model {runner.card.model!r} failed the check at start: {error}") from error
    check_sums(runner.card, states_of(block, columns))
