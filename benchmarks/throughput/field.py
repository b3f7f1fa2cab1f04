"""Everybody who runs texts through the model: a real server with its client, the engine alone, the peers' processes."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from stratoscope import Client
from stratoscope_server.engines.batched import BatchedEngine
from throughput.ours import collected, computed, delivered_states, in_process, model_folder, served
from throughput.peer import Peer, PeerError, farthest, python_of, running
from throughput.rivals import Rival

BOUND: Final = 6e-2
"""Largest relative L2 distance of a column between ours and a peer's in bfloat16, where other kernels round otherwise.

Whether it is rounding is told in float32; see `throughput.exact`.
"""


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who runs texts, and how.

    Attributes
    ----------
    every
        See `throughput.rivals.Rival`.
    run
        Takes texts, returns seconds.
    batch_size
        0 where the contestant does not have one.
    """

    subject: str
    run: Callable[[Sequence[str]], float]
    every: int = 1
    batch_size: int = 0


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
            theirs, their_tokens = self.peers[rival.module].states(rival.way, texts, (*rival.sizes, 32)[0], self.folder)
            if their_tokens != n_tokens:
                raise PeerError(f"{rival.subject} reads {their_tokens} tokens where ours reads {n_tokens}")
            distance = farthest(ours, theirs)
            print(f"{rival.subject} against ours, relative L2 of a column at worst: {distance:.1e}", flush=True)
            if not distance <= BOUND:
                raise PeerError(f"{rival.subject} differs from ours by {distance:.1e}, more than {BOUND:.0e}")

    def contestants(self, texts: Sequence[str], searched: Sequence[int]) -> Iterator[Contestant]:
        """Yield everybody, peers at the batch size that suits them best."""
        yield Contestant("stratoscope, delivered and stored", partial(collected, self.client))
        yield Contestant("stratoscope, engine alone", lambda some: computed(self.engine, some).seconds)
        for rival in self.rivals:
            peer = self.peers[rival.module]
            sizes = rival.sizes or searched
            # With one size there is nothing to choose, and warm it is from the comparison.
            tried = {size: peer.seconds(rival.way, texts[::3], size) for size in sizes} if len(sizes) > 1 else {}
            best = min(tried, key=lambda size: tried[size], default=sizes[0])
            yield Contestant(rival.subject, partial(peer.seconds, rival.way, size=best), rival.every, best)


@contextmanager
def prepared(folder: Path, rivals: Sequence[Rival]) -> Iterator[Field]:
    """Start everybody, with a thread for each core, and give them."""
    threads = len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        peers = {
            module: stack.enter_context(running(module, python_of(environment), model_folder(), threads))
            for module, environment in {rival.module: rival.environment for rival in rivals}.items()
        }
        client = stack.enter_context(served(folder))
        yield Field(folder, client, in_process(), peers, rivals)
