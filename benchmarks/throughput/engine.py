"""Short texts through a model: delivered, in process, by every peer, and at the rate of the matrix products alone."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from transformers import AutoConfig, AutoModel

from throughput.exact import check_exact
from throughput.field import Contestant, Field, prepared
from throughput.figure import Figure
from throughput.ours import Computed, computed, model_folder
from throughput.rivals import RIVALS, Rival
from throughput.roofline import Work, product_rate, square_rate
from throughput.texts import distinct, templated

N_COMPARED: Final = 48
N_EXACT: Final = 8
SEARCHED: Final = (16, 32, 64, 128)
"""Batch sizes that a peer may choose from."""

SETS: Final = {"distinct": distinct, "templated": templated}
PRODUCTS: Final = "matrix products"


def measure(
    n_texts: int = 48,
    rounds: int = 2,
    rivals: Sequence[Rival] = RIVALS,
    searched: Sequence[int] = SEARCHED,
    seconds: float = 0.2,
) -> list[Figure]:
    """Measure every contestant on both sets of texts, in rounds.

    Parameters
    ----------
    rounds
        In each, everybody runs each set once; every other round in the opposite order.
    rivals
        Peers.
    searched
        Batch sizes from which a peer's best is chosen on a third of the texts.
    seconds
        To measure each size of matrix product for.

    Raises
    ------
    PeerError
        If a peer is not installed, or its states are not ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        check_exact(rivals, distinct(N_EXACT) + templated(N_EXACT), Path(folder))
    with tempfile.TemporaryDirectory() as folder, prepared(Path(folder), rivals) as field:
        field.compare(distinct(N_COMPARED) + templated(N_COMPARED))
        return [
            figure
            for name, make in SETS.items()
            for figure in _contest(field, name, make(n_texts), rounds, searched, seconds)
        ]


def _contest(
    field: Field, name: str, texts: Sequence[str], rounds: int, searched: Sequence[int], seconds: float
) -> Iterator[Figure]:
    contestants = list(field.contestants(texts, searched))
    rates: dict[str, list[float]] = {contestant.subject: [] for contestant in contestants}
    products: list[float] = []
    squares: list[float] = []
    work = model_work()
    for index in range(rounds):
        for contestant in contestants if index % 2 == 0 else reversed(contestants):
            chosen = texts[:: contestant.every]
            rates[contestant.subject].append(len(chosen) / contestant.run(chosen))
            rate = rates[contestant.subject][-1]
            print(f"{name}, round {index}: {contestant.subject}: {rate:.1f} texts/s", flush=True)
        products.append(product_rate(work, seconds))
        squares.append(square_rate(work.dtype, seconds))
    return _figures(name, texts, contestants, rates, products, squares, computed(field.engine, texts), work)


def _figures(
    name: str,
    texts: Sequence[str],
    contestants: Sequence[Contestant],
    rates: dict[str, list[float]],
    products: Sequence[float],
    squares: Sequence[float],
    found: Computed,
    work: Work,
) -> Iterator[Figure]:
    measure, unit = f"{name} texts", "texts/s"
    operations = work.operations(found.lengths)
    all_sizes: dict[str, float] = {"n_stimuli": len(texts), "n_tokens": sum(found.lengths), "n_layers": work.n_layers}
    for contestant in contestants:
        lengths = found.lengths[:: contestant.every]
        own = all_sizes | {"n_stimuli": len(lengths), "n_tokens": sum(lengths), "batch_size": contestant.batch_size}
        limit = f"{PRODUCTS}/{measure}"
        yield Figure("engine", contestant.subject, measure, unit, tuple(rates[contestant.subject]), own, limit)
    at_limit = tuple(rate * len(texts) / operations for rate in products)
    sizes = all_sizes | {"n_beginnings": found.n_beginnings, "operations": operations}
    yield Figure("limit", PRODUCTS, measure, unit, at_limit, sizes)
    yield Figure("limit", PRODUCTS, f"rate beside {measure}", "operations/s", tuple(products))
    yield Figure("limit", "one square product", f"rate beside {measure}", "operations/s", tuple(squares))


def model_work() -> Work:
    """Return the matrix products of the model, without loading its weights."""
    config = AutoConfig.from_pretrained(model_folder(), local_files_only=True)
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    return Work.of(model.layers, config)
