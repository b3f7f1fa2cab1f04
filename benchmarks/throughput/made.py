"""Activations of a model of any shape, made rather than computed: what a client has once an answer is verified."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stratoscope.captures import make_capture
from stratoscope.stimuli import StimulusTable
from stratoscope.store.measurement import Measurement
from stratoscope_wire import ModelCard
from stratoscope_wire.card import site_cards
from stratoscope_wire.request import Dtype
from stratoscope_wire.schema import response_schema

Batches = list[tuple[pa.RecordBatch, Dtype]]


@dataclass(frozen=True)
class Made:
    """One row for each stimulus, at every layer of one site, in bfloat16."""

    n_stimuli: int
    n_layers: int
    d_model: int

    @cached_property
    def measurement(self) -> Measurement:
        card = ModelCard(
            model="made", revision="1", architecture="made", dtype="bfloat16", n_layers=self.n_layers,
            d_model=self.d_model, n_heads=1, d_head=self.d_model, vocab_size=1000, max_tokens=100,
            tokenizer_hash="made", engine="synthetic", versions={},
            sites=site_cards(self.n_layers, self.d_model, self.d_model),
        ).signed()  # fmt: skip
        capture = make_capture(("resid_post",), "all", ("last",))
        return Measurement(card, capture, card.columns(["resid_post"]), add_special_tokens=True)

    @cached_property
    def table(self) -> StimulusTable:
        rows = [{"id": f"s{index}", "text": f"text {index}"} for index in range(self.n_stimuli)]
        return StimulusTable.from_rows(rows, [row["id"] for row in rows], "made")

    @property
    def float_bytes(self) -> int:
        return 4 * self.n_stimuli * self.n_layers * self.d_model

    def values(self, layer: int, first: int, end: int) -> npt.NDArray[np.uint16]:
        """Bits of bfloat16 values: normal, with a scale for each dimension as activations have."""
        scale = np.exp(np.random.default_rng(layer).standard_normal(self.d_model, dtype=np.float32) / 2)
        rng = np.random.default_rng([layer, first])
        states = rng.standard_normal((end - first, self.d_model), dtype=np.float32) * scale
        return ((states.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)

    def shards(self, rows: int) -> Iterator[Batches]:
        """Give the batches of one shard after the other."""
        columns = self.measurement.columns
        schema = response_schema(columns, "bfloat16")
        for first in range(0, self.n_stimuli, rows):
            end = min(first + rows, self.n_stimuli)
            n = end - first
            keys = [pa.array([f"s{index}" for index in range(first, end)]), pa.array(["last"] * n)]
            keys += [pa.array(np.zeros(n, np.int32))] * 2
            lists = [
                pa.FixedSizeListArray.from_arrays(
                    pa.array(self.values(layer, first, end).ravel()), type=schema.field(column.name).type
                )
                for layer, column in enumerate(columns)
            ]
            yield [(pa.RecordBatch.from_arrays([*keys, *lists], schema=schema), "bfloat16")]
