"""Runs one batch through the model and reads the rows asked for."""

from collections.abc import Sequence
from contextlib import suppress

import torch

from stratoscope_server.engines.arranging import Row, apart, arrange
from stratoscope_server.engines.packing import Packed
from stratoscope_server.engines.pretrained.tokenizing import FastTokenizer
from stratoscope_server.engines.protocol import EngineError, Prompt
from stratoscope_server.engines.torch.batch import Batch
from stratoscope_server.engines.torch.layout import lay_out
from stratoscope_server.engines.torch.loading import LoadedModel
from stratoscope_server.engines.torch.masks import attention_mask
from stratoscope_server.engines.torch.recorder import EveryColumnWritten, Recorder
from stratoscope_server.engines.torch.taps import Taps
from stratoscope_server.selection import row_keys
from stratoscope_wire import Block, Column, ModelCard
from stratoscope_wire.dtypes import Values
from stratoscope_wire.request import Dtype


class TorchRunner:
    """The `stratoscope_server.engines.batched.Runner` over a Hugging Face model.

    Prefill only: no cache, no unembedding, and the pass ends as soon as the last column asked for is read. Several
    threads may run a batch each: they share the weights and nothing else.

    Parameters
    ----------
    loaded
        The model.
    tokenizer
        Its tokenizer.
    card
        What it publishes.
    merge
        Whether what prompts share is computed once.

    Raises
    ------
    ModelRefusedError
        If the model has not the modules of its family.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: FastTokenizer, card: ModelCard, *, merge: bool = True) -> None:
        self._loaded = loaded
        self.merge = merge
        self._tokenizer = tokenizer
        self._card = card
        self._taps = Taps(loaded.module, loaded.family, card.n_layers)

    @property
    def card(self) -> ModelCard:
        """What model this is."""
        return self._card

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self._loaded.device

    @property
    def tokenizer(self) -> FastTokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    def run(self, prompts: Sequence[Prompt], columns: Sequence[Column], dtype: Dtype) -> Block:
        """Return the rows of all prompts, in their order.

        Raises
        ------
        EngineError
            If a prompt does not fit the model, memory does not suffice, a column was not computed exactly once, or a
            value is not finite or does not fit the type asked for.
        """
        for prompt in prompts:
            self._check(prompt)
        batch = lay_out(prompts, self._arrange)
        try:
            values = self._read(batch, columns, dtype)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                "engine_oom",
                f"a batch of {batch.token_ids.numel()} tokens with {len(batch.owners)} rows of {len(columns)} columns "
                f"does not fit the memory of {self._loaded.device}; ask for fewer rows or columns, or start the "
                "server with fewer tokens per batch",
                status=503,
                retryable=True,
            ) from error
        return Block(*row_keys(prompts), values)

    def _arrange(self, prompts: Sequence[Prompt]) -> Sequence[Row]:
        if isinstance(prompts, Packed):
            return prompts.rows
        return arrange(prompts) if self.merge else apart(prompts)

    @torch.inference_mode()
    def _read(self, batch: Batch, columns: Sequence[Column], dtype: Dtype) -> list[Values]:
        recorder = Recorder(batch, columns, dtype, self._loaded.device)
        names = [column.name for column in columns]
        with suppress(EveryColumnWritten), self._taps.reading(names, recorder.write):
            self._forward(batch)
        return recorder.finish()

    def _forward(self, batch: Batch) -> None:
        loaded = self._loaded
        dtype = getattr(torch, loaded.dtype)
        loaded.module(
            input_ids=batch.token_ids.to(loaded.device),
            position_ids=batch.positions.to(loaded.device),
            attention_mask=attention_mask(batch, loaded.family, loaded.config, dtype, loaded.device),
            use_cache=False,
        )

    def _check(self, prompt: Prompt) -> None:
        if prompt.n_tokens > self._card.max_tokens:
            raise EngineError(
                "stimulus_too_long",
                f"stimulus {prompt.stimulus_id!r} has {prompt.n_tokens} tokens; the model takes at most "
                f"{self._card.max_tokens}",
                status=413,
            )
        unknown = prompt.token_ids[(prompt.token_ids < 0) | (prompt.token_ids >= self._card.vocab_size)]
        if len(unknown):
            raise EngineError(
                "unknown_token",
                f"stimulus {prompt.stimulus_id!r} has token id {unknown[0]}; the model knows 0 to "
                f"{self._card.vocab_size - 1}",
                status=422,
            )
