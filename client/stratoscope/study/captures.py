"""Captures of a study: which texts are read at which sites, each text once for each capture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import polars as pl

from stratoscope.captures import Layers
from stratoscope.stimuli.spans import PREFIX
from stratoscope.stimuli.table import StimulusTable
from stratoscope.study.asked import Heads
from stratoscope.study.config import Experiment, Study
from stratoscope.study.stimuli import ID
from stratoscope.study.workspace import digest
from stratoscope_wire import ModelCard

HEADS = "heads"

Reading = tuple[tuple[str, ...], str | tuple[int, ...], str, bool]
"""Sites, layers, selector, and whether special tokens are added."""


@dataclass(frozen=True)
class Capture:
    """One way of reading, and the texts that are read so.

    Attributes
    ----------
    name
        Folder of its run.
    sites, layers, read
        What is read.
    add_special_tokens
        Whether texts are tokenised with the model's special tokens.
    texts
        ``id`` and ``text``, and spans if they are read; every text once.
    """

    name: str
    sites: tuple[str, ...]
    layers: Layers
    read: str
    add_special_tokens: bool
    texts: pl.DataFrame

    @property
    def table(self) -> StimulusTable:
        """The texts, as they are sent."""
        return StimulusTable.from_frame(self.texts, f"capture {self.name}")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `collect` and `plan_collection`."""
        return {
            "sites": self.sites,
            "layers": self.layers,
            "select": (self.read,),
            "add_special_tokens": self.add_special_tokens,
        }


def make_captures(study: Study, stimuli: Mapping[str, pl.DataFrame], card: ModelCard) -> dict[str, Capture]:
    """List the captures of a study.

    Returns
    -------
    mapping of names of experiments (and of ``heads/EXPERIMENT``) to captures
        Experiments that are read alike share one.
    """
    wanted = {e.name: (_reading(study, e), stimuli[e.name]) for e in study.experiments}
    if study.heads is not None:
        layers = head_layers(study.heads, card)
        for experiment, _ in study.chosen(study.heads):
            _, _, read, special = _reading(study, experiment)
            wanted[f"{HEADS}/{experiment.name}"] = ((HEADS,), layers, read, special), stimuli[experiment.name]
    alike: dict[tuple[Any, ...], list[pl.DataFrame]] = {}
    for reading, frame in wanted.values():
        alike.setdefault(reading, []).append(_texts(frame))
    captures = {reading: _capture(reading, frames) for reading, frames in alike.items()}
    return {name: captures[reading] for name, (reading, _) in wanted.items()}


def distinct(captures: Mapping[str, Capture]) -> list[Capture]:
    """Return every capture once."""
    return list({capture.name: capture for capture in captures.values()}.values())


def head_layers(heads: Heads, card: ModelCard) -> tuple[int, ...]:
    """Return the layers whose heads are probed: those nearest to the depths asked for."""
    return tuple(sorted({round(depth * (card.n_layers - 1)) for depth in heads.depths}))


def _reading(study: Study, experiment: Experiment) -> Reading:
    reading = study.reading
    return (
        experiment.sites or reading.sites,
        experiment.layers if experiment.layers is not None else reading.layers,
        experiment.read or reading.read,
        reading.add_special_tokens,
    )


def _capture(reading: tuple[Any, ...], frames: list[pl.DataFrame]) -> Capture:
    sites, layers, read, special = reading
    texts = reduce(lambda a, b: a.vstack(b), frames).unique("id", keep="first", maintain_order=True)
    name = f"{'-'.join(sites)}-{digest(reading)[:8]}"
    return Capture(name, sites, layers if isinstance(layers, str) else list(layers), read, special, texts)


def _texts(frame: pl.DataFrame) -> pl.DataFrame:
    spans = sorted(column for column in frame.columns if column.startswith(PREFIX))
    return frame.select(pl.col(ID).alias("id"), "text", *spans)
