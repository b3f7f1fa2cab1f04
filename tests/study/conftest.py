"""Planting a truth in the synthetic engine, for every analysis of a study."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stratoscope.client import Client
from stratoscope.study.config import Study
from stratoscope.study.fits import Fit, list_fits
from stratoscope.study.running import run_study
from stratoscope.study.stimuli import make_stimuli
from stratoscope_server.engines import synthetic
from stratoscope_server.engines.plants import Fact, Plants

Gains = Mapping[str, Sequence[float]]
"""By site, the gain at every layer."""

Plant = Callable[[Study, Callable[[Fit], Gains], int], Plants]
RunPlanted = Callable[[Study, Plants, Path], Path]


def values_of(fit: Fit) -> dict[str, dict[str, float]]:
    """What is planted for an analysis, by fact and text: -1 or 1 for two classes, standard scores for values."""
    rows = fit.rows
    if fit.target.kind == "values":
        scores = rows[fit.target.label].cast(pl.Float64)
        spread = ((scores - scores.mean()) / scores.std()).to_list()
        return {fit.title: dict(zip(rows["text"], spread, strict=True))}
    classes = rows[fit.target.label].cast(pl.String).unique().sort().to_list()
    named = classes[1:] if len(classes) == 2 else classes
    return {
        f"{fit.title} is {name}": {
            text: 1.0 if label == name else -1.0
            for text, label in zip(rows["text"], rows[fit.target.label].cast(pl.String), strict=True)
        }
        for name in named
    }


def plant(study: Study, gains: Callable[[Fit], Gains], n_layers: int) -> Plants:
    """Plant every analysis of a study with the gains that `gains` gives it."""
    facts = [
        Fact(name=name, values=values, gains={site: list(curve) for site, curve in gains(fit).items()})
        for fit in list_fits(study, make_stimuli(study, None))
        # Texts at distance 0 are those of another experiment, which has planted them.
        if fit.distance != 0
        for name, values in values_of(fit).items()
    ]
    content = hashlib.sha256(str([(fact.name, fact.gains) for fact in facts]).encode())
    return Plants(n_layers=n_layers, facts=facts, revision=f"plants-{content.hexdigest()[:12]}")


def hump(n_layers: int, peak: float, width: float = 3.0, height: float = 0.35) -> list[float]:
    """A smooth rise and fall around a layer."""
    return [float(gain) for gain in height * np.exp(-(((np.arange(n_layers) - peak) / width) ** 2))]


@contextmanager
def no_bar(_what: str) -> Iterator[Callable[[int, int], None]]:
    """Show no progress."""
    yield lambda _done, _total: None


@pytest.fixture(scope="session")
def plant_study() -> Plant:
    """See `plant`."""
    return plant


@pytest.fixture(scope="session")
def hump_at() -> Callable[..., list[float]]:
    """See `hump`."""
    return hump


@pytest.fixture(scope="session")
def run_planted(start_server: Callable[..., object]) -> RunPlanted:
    """Run a study against a synthetic model with plants, over a real server; gives the folder of the run."""

    def run(study: Study, plants: Plants, out: Path) -> Path:
        with start_server(lambda: synthetic.load_engine(plants=plants)) as url, Client(url) as client:  # type: ignore[attr-defined]
            run_study(study, None, out, client, bar=no_bar, say=lambda _: None)
        return out

    return run
