"""The folder of a study's run: where everything lies, and what is recorded so that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from stratoscope.errors import RunError
from stratoscope.store.durable import replace_file
from stratoscope.study.config import Study
from stratoscope_wire import ModelCard

STUDY_FILE = "study.json"
MODEL_FILE = "model.json"


@dataclass(frozen=True)
class Workspace:
    """Paths under the folder of a study's run.

    ``study.json``, ``model.json``, ``stimuli/EXPERIMENT.parquet|csv``, ``activations/CAPTURE/`` (runs),
    ``fits/EXPERIMENT/...`` (results of sweeps), ``tables/``, ``figures/``, ``report.html``.
    """

    path: Path

    def run(self, capture: str) -> Path:
        """Folder of the run of a capture."""
        return self.path / "activations" / capture

    def fit(self, *parts: str) -> Path:
        """Folder of a fit."""
        return self.path.joinpath("fits", *parts)

    def stimuli(self, experiment: str) -> Path:
        """Table of an experiment's stimuli, without suffix."""
        return self.path / "stimuli" / experiment

    def begin(self, study: Study, stimuli: Mapping[str, pl.DataFrame], card: ModelCard) -> None:
        """Record the study, its stimuli and the model; a study that has changed since is recorded anew.

        Raises
        ------
        RunError
            If the folder holds another study.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        record = self.path / STUDY_FILE
        if record.exists() and self.study.study != study.study:
            raise RunError(f"{self.path} holds the study {self.study.study!r}, not {study.study!r}: give another --out")
        write_json(record, study.recorded())
        write_json(self.path / MODEL_FILE, card.model_dump(mode="json"))
        for name, frame in stimuli.items():
            write_frame(frame, self.stimuli(name))

    @property
    def study(self) -> Study:
        """The study as it was recorded, its profile applied.

        Raises
        ------
        RunError
            If the folder holds none.
        """
        return Study.model_validate(self._read(STUDY_FILE))

    @property
    def card(self) -> ModelCard:
        """The model that was measured; raises `RunError` if there is none."""
        return ModelCard.model_validate(self._read(MODEL_FILE))

    def recorded_stimuli(self) -> dict[str, pl.DataFrame]:
        """Return the stimuli of every experiment as they were recorded."""
        return {e.name: pl.read_parquet(f"{self.stimuli(e.name)}.parquet") for e in self.study.experiments}

    def _read(self, name: str) -> Any:  # noqa: ANN401 - JSON
        try:
            return json.loads((self.path / name).read_text("utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} holds no study: run one with `stratoscope study run ... --out`") from None

    def table(self, name: str) -> pl.DataFrame:
        """Read one of the tables behind the report.

        Raises
        ------
        RunError
            If it is not there.
        """
        path = self.path / "tables" / f"{name}.parquet"
        if not path.exists():
            raise RunError(f"{path} is missing: finish the study with `stratoscope study run` first")
        return pl.read_parquet(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda file: file.write(text.encode()))


def write_frame(frame: pl.DataFrame, stem: Path) -> None:
    """Write a table as ``STEM.parquet`` and ``STEM.csv``, each in one piece."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    replace_file(stem.with_name(stem.name + ".parquet"), lambda file: pq.write_table(frame.to_arrow(), file))
    replace_file(stem.with_name(stem.name + ".csv"), lambda file: file.write(frame.write_csv().encode()))


def digest(content: object) -> str:
    """Name JSON content by its SHA-256, the first 24 hex digits."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
