"""Short texts through a model: delivered, in process, by every peer, and at the rate of the matrix products alone."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import AutoConfig, AutoModel

from stratoscope import Client
from stratoscope_server.engines.batched import BatchedEngine
from throughput.figure import Figure
from throughput.ours import Computed, collected, computed, delivered_states, in_process, model_folder, served
from throughput.peer import Peer, PeerError, farthest, running
from throughput.rivals import RIVALS, Rival
from throughput.roofline import Work, product_rate, square_rate
from throughput.texts import distinct, templated

BOUND: Final = 3e-2
"""Largest relative L2 distance of a column between ours and a peer's in bfloat16: other kernels round otherwise."""

N_COMPARED: Final = 48
SEARCHED: Final = (16, 32, 64, 128)
"""Batch sizes that a peer may choose from."""

SETS: Final = {"distinct": distinct, "templated": templated}
PRODUCTS: Final = "matrix products"


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who runs texts, and how.

    Attributes
    ----------
    every
        Of the texts, how many are passed over for each that is run: a slow one gets fewer.
    run
        Takes texts, returns seconds.
    batch_size
        0 where the contestant does not have one.
    """

    subject: str
    run: Callable[[Sequence[str]], float]
    every: int = 1
    batch_size: int = 0


def measure(
    n_texts: int = 48,
    rounds: int = 2,
    rivals: Sequence[Rival] = RIVALS,
    searched: Sequence[int] = SEARCHED,
    one_by_one_every: int = 8,
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
        Batch sizes from which a peer's best is chosen on a quarter of the texts.
    one_by_one_every
        The one-by-one script runs every so many-th text.
    seconds
        To measure each size of matrix product for.

    Raises
    ------
    PeerError
        If a peer is not installed, or its states are not ours.
    """
    with tempfile.TemporaryDirectory() as folder, _field(Path(folder), rivals) as field:
        field.compare(distinct(N_COMPARED) + templated(N_COMPARED))
        return [
            figure
            for name, make in SETS.items()
            for figure in _contest(field, name, make(n_texts), rounds, searched, one_by_one_every, seconds)
        ]


@dataclass(frozen=True, slots=True)
class Field:
    """Everybody, started: a server with its client, the engine alone, the peers' processes."""

    folder: Path
    client: Client
    engine: BatchedEngine
    peers: dict[str, Peer]
    rivals: Sequence[Rival]

    def compare(self, texts: Sequence[str]) -> None:
        """Hold every peer's states against ours.

        Raises
        ------
        PeerError
            If a column is too far off, or the tokens are not the same.
        """
        ours = delivered_states(self.client, texts)
        n_tokens = sum(computed(self.engine, texts).lengths)
        for rival in self.rivals:
            theirs, their_tokens = self.peers[rival.module].states(rival.way, texts, 32, self.folder)
            if their_tokens != n_tokens:
                raise PeerError(f"{rival.subject} reads {their_tokens} tokens where ours reads {n_tokens}")
            distance = farthest(ours, theirs)
            print(f"{rival.subject} against ours, relative L2 of a column at worst: {distance:.1e}", flush=True)
            if not distance <= BOUND:
                raise PeerError(f"{rival.subject} differs from ours by {distance:.1e}, more than {BOUND:.0e}")

    def contestants(self, texts: Sequence[str], searched: Sequence[int], every: int) -> Iterator[Contestant]:
        """Yield everybody, peers at the batch size that suits them best."""
        yield Contestant("stratoscope, delivered and stored", partial(collected, self.client))
        yield Contestant("stratoscope, engine alone", lambda some: computed(self.engine, some).seconds)
        for rival in self.rivals:
            peer = self.peers[rival.module]
            sizes = rival.sizes or searched
            tried = {size: peer.seconds(rival.way, texts[::4], size) for size in sizes}
            best = min(tried, key=lambda size: tried[size])
            run = partial(peer.seconds, rival.way, size=best)
            yield Contestant(rival.subject, run, every if rival.sizes == (1,) else 1, best)


@contextmanager
def _field(folder: Path, rivals: Sequence[Rival]) -> Iterator[Field]:
    threads = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        peers = {
            module: stack.enter_context(running(module, environment, model_folder(), threads))
            for module, environment in {rival.module: rival.environment for rival in rivals}.items()
        }
        client = stack.enter_context(served(folder))
        yield Field(folder, client, in_process(), peers, rivals)


def _contest(
    field: Field, name: str, texts: Sequence[str], rounds: int, searched: Sequence[int], every: int, seconds: float
) -> Iterator[Figure]:
    contestants = list(field.contestants(texts, searched, every))
    rates: dict[str, list[float]] = {contestant.subject: [] for contestant in contestants}
    products: list[float] = []
    squares: list[float] = []
    work = model_work()
    for index in range(rounds):
        for contestant in contestants if index % 2 == 0 else reversed(contestants):
            chosen = texts[:: contestant.every]
            rates[contestant.subject].append(len(chosen) / contestant.run(chosen))
            print(f"{name}, round {index}: {contestant.subject}: {rates[contestant.subject][-1]:.1f} texts/s", flush=True)
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
    sizes = {"n_tokens": float(sum(found.lengths)), "n_beginnings": float(found.n_beginnings)}
    sizes |= {"n_layers": float(work.n_layers), "operations": operations}
    for contestant in contestants:
        n_stimuli = len(texts[:: contestant.every])
        own = sizes | {"n_stimuli": float(n_stimuli), "batch_size": float(contestant.batch_size)}
        limit = f"{PRODUCTS}/{measure}"
        yield Figure("engine", contestant.subject, measure, unit, tuple(rates[contestant.subject]), own, limit)
    at_limit = tuple(rate * len(texts) / operations for rate in products)
    yield Figure("limit", PRODUCTS, measure, unit, at_limit, sizes | {"n_stimuli": float(len(texts))})
    yield Figure("limit", PRODUCTS, f"rate beside {measure}", "operations/s", tuple(products))
    yield Figure("limit", "one square product", f"rate beside {measure}", "operations/s", tuple(squares))


def model_work() -> Work:
    """Return the matrix products of the model, without loading its weights."""
    config = AutoConfig.from_pretrained(model_folder(), local_files_only=True)
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    return Work.of(model.layers, config)
