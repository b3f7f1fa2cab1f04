"""Texts as long as those of the built-in experiments, with and without shared beginnings."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from stratoscope.experiments import EXPERIMENTS, load_experiment

JOINTS: Final = (" as ", " and ")


def built_in() -> list[str]:
    """Return the texts of the built-in experiments."""
    texts = [text for experiment in EXPERIMENTS for text in load_experiment(experiment.name).texts]
    return [text for text in texts if text is not None]


def templated(n_texts: int, seed: int = 0) -> list[str]:
    """Return different texts of the built-in kinds: an even choice of the originals, then their halves recombined.

    Recombined texts with the same first half stand together, as in the originals and in any design that is written by
    loops over its halves.
    """
    originals = built_in()
    if n_texts <= len(originals):
        return [originals[index] for index in np.linspace(0, len(originals) - 1, n_texts).astype(int)]
    known = set(originals)
    found: dict[str, str] = {}
    for first, text in _recombined(originals, np.random.default_rng(seed)):
        if text not in known:
            found.setdefault(text, first)
        if len(originals) + len(found) == n_texts:
            break
    return originals + sorted(found, key=lambda text: (found[text], text))


def distinct(n_texts: int, seed: int = 0) -> list[str]:
    """Return texts with as many words as the templated ones, drawn at random: little is shared but a first word."""
    words = sorted({word for text in built_in() for word in text.split()})
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, len(text.split()))) for text in templated(n_texts, seed)]


def _recombined(originals: list[str], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    # "A spanner is to a bolt" + "a pigeon is to a loft", "A church" + "organ"; "An apple" has no halves.
    halves = [[text.split(joint) for text in originals if text.count(joint) == 1] for joint in JOINTS]
    while True:
        for joint, pairs in zip(JOINTS, halves, strict=True):
            first, second = rng.integers(len(pairs), size=2)
            yield pairs[first][0], pairs[first][0] + joint + pairs[second][1]
