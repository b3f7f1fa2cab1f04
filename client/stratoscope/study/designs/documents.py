"""Documents of several sentences that tell one scene, or of the same sentences mixed, in closed blocks."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stratoscope.errors import StimulusError

BLOCK: Final = 4
"""Scenes of a block, and sentences of a document: the mixed documents are a Latin square of the two."""

NEEDED: Final = ("scene", "domain", "slot", "sentence")
"""Columns that the table must have; all others are labels of the scene."""

MADE: Final = ("text", "group", "coherent", "part", "scene_group")
"""Columns that are made here; no label can have their names."""

Scenes = dict[str, pl.DataFrame]


def documents(scenes: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Make coherent and mixed documents of the same sentences at the same places.

    A block holds four scenes of different domains. Its slots are divided into sets of four; a set gives four coherent
    documents, of the four sentences of one scene each, and four mixed ones: document i has at place s the sentence of
    scene (i + s) mod 4. So every sentence of a block occurs once in a coherent and once in a mixed document, both times
    at the same place: nothing that is summed up over single sentences, words or characters speaks for either.

    Parameters
    ----------
    scenes : polars.DataFrame
        One row per sentence: ``scene``, ``domain``, ``slot`` (1, 2, ...), ``sentence``, and labels that are the same in
        all rows of a scene. The number of scenes and that of slots must be multiples of four. The order of the rows
        does not matter.
    seed : int
        Decides which scenes meet and which slots go together.

    Returns
    -------
    polars.DataFrame
        ``text``; ``group``, the block; ``coherent``, 1 or 0; ``part``, the set of slots, from 1. Of coherent documents,
        and null in mixed ones: ``scene``; ``scene_group``, the same, which is to keep a scene in one fold where a label
        of it is predicted; ``domain``; and the labels.

    Raises
    ------
    StimulusError
        If a column is missing, has a name that is made here, or has empty cells; a slot or sentence is there twice or a
        slot is missing; a domain or label changes within a scene; the numbers are no multiples of four; or a domain has
        more than a quarter of the scenes, so that blocks of different domains cannot be formed.
    """
    _check_columns(scenes)
    ordered = scenes.sort("scene", "slot")
    by_name = {str(part["scene"][0]): part for part in ordered.partition_by("scene", maintain_order=True)}
    labels = [name for name in scenes.columns if name not in ("scene", "slot", "sentence")]
    n_slots = _check_scenes(by_name, labels)
    rng = np.random.default_rng(seed)
    blocks = _blocks({name: part["domain"][0] for name, part in by_name.items()}, rng)
    rows: list[dict[str, object]] = []
    for number, names in enumerate(blocks, start=1):
        group = f"documents-block-{number:0{len(str(len(blocks)))}d}"
        for part, slots in enumerate(np.sort(rng.permutation(n_slots).reshape(-1, BLOCK)), start=1):
            made = _coherent(by_name, names, slots, labels) + _mixed(by_name, names, slots)
            rows += [{**row, "group": group, "part": part} for row in made]
    names_and_types = {"text": pl.String(), "group": pl.String(), "coherent": pl.Int64(), "part": pl.Int64()}
    known = {"scene": pl.String(), "scene_group": pl.String(), **{name: scenes.schema[name] for name in labels}}
    return pl.DataFrame(rows, schema=pl.Schema({**names_and_types, **known}))


def _coherent(scenes: Scenes, names: list[str], slots: NDArray[np.intp], labels: list[str]) -> list[dict[str, object]]:
    rows = []
    for name in names:
        text = " ".join(scenes[name]["sentence"][int(slot)] for slot in slots)
        known = scenes[name].select(labels).row(0, named=True)
        rows.append({"text": text, "coherent": 1, "scene": name, "scene_group": name, **known})
    return rows


def _mixed(scenes: Scenes, names: list[str], slots: NDArray[np.intp]) -> list[dict[str, object]]:
    sentences = [scenes[name]["sentence"] for name in names]
    return [
        {"text": " ".join(sentences[(i + s) % BLOCK][int(slot)] for s, slot in enumerate(slots)), "coherent": 0}
        for i in range(BLOCK)
    ]


def _blocks(domain_of: dict[str, object], rng: np.random.Generator) -> list[list[str]]:
    """Deal the scenes to the blocks in turn, domain by domain: no domain lasts longer than a round."""
    n_blocks = len(domain_of) // BLOCK
    domains = sorted(set(domain_of.values()), key=str)
    dealt: list[str] = []
    for number in rng.permutation(len(domains)):
        names = [name for name, domain in domain_of.items() if domain == domains[number]]
        if len(names) > n_blocks:
            raise StimulusError(
                f"domain {domains[number]!r} has {len(names)} of {len(domain_of)} scenes; at most {n_blocks} can be "
                "placed in blocks of different domains: divide the domain"
            )
        dealt += [names[at] for at in rng.permutation(len(names))]
    return [dealt[start::n_blocks] for start in range(n_blocks)]


def _check_columns(scenes: pl.DataFrame) -> None:
    for name in NEEDED:
        if name not in scenes.columns:
            raise StimulusError(f"documents: the table has no column {name!r}; it has {', '.join(scenes.columns)}")
    for name in scenes.columns:
        if name in MADE:
            raise StimulusError(f"documents: the table has a column {name!r}, a name of the design; rename it")
        if scenes[name].null_count():
            row = scenes[name].is_null().arg_true()[0] + 1
            raise StimulusError(f"documents: column {name!r} is empty in row {row}; fill it")
    for name in ("scene", "sentence"):
        if scenes.schema[name] != pl.String:
            raise StimulusError(f"documents: column {name!r} is {scenes.schema[name]}; it must hold texts")
    twice = scenes["sentence"].filter(scenes["sentence"].is_duplicated())
    if len(twice):
        raise StimulusError(f"documents: the sentence {twice[0]!r} occurs more than once; each must be its own")


def _check_scenes(scenes: Scenes, labels: list[str]) -> int:
    """Return the number of slots, the same in all scenes."""
    n_slots = max((part.height for part in scenes.values()), default=0)
    if not scenes or len(scenes) % BLOCK or n_slots % BLOCK:
        raise StimulusError(
            f"documents: {len(scenes)} scenes of {n_slots} slots; both must be multiples of {BLOCK}, and not 0"
        )
    for name, part in scenes.items():
        slots = part["slot"].to_list()
        if slots != list(range(1, n_slots + 1)):
            raise StimulusError(
                f"documents: scene {name!r} has the slots {slots}; each of 1 to {n_slots} is needed once"
            )
        for label in labels:
            if part[label].n_unique() > 1:
                values = part[label].unique(maintain_order=True).to_list()
                raise StimulusError(
                    f"documents: scene {name!r} has more than one {label!r}: {values}; it must have one"
                )
    return n_slots
