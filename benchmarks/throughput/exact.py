"""Whether everybody reads the same states: in float32, where nothing hides behind rounding."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from throughput.ours import delivered_states, model_folder, served
from throughput.peer import PeerError, farthest, python_of, running
from throughput.rivals import VLLM, Rival

BOUND: Final = 1e-5
"""Largest relative L2 distance of a column between ours and a peer's."""


def check_exact(rivals: Sequence[Rival], texts: Sequence[str], folder: Path) -> None:
    """Hold every peer's states in float32 against ours; vLLM's are in its own benchmark, and its start takes a minute.

    Raises
    ------
    PeerError
        If a column is too far off.
    """
    with served(folder, "float32") as client:
        ours = delivered_states(client, texts)
    for module, environment in {rival.module: rival.environment for rival in rivals if rival != VLLM}.items():
        with running(module, python_of(environment), model_folder(), len(os.sched_getaffinity(0)), "float32") as peer:
            for rival in (rival for rival in rivals if rival.module == module):
                distance = farthest(ours, peer.states(rival.way, texts, 8, folder)[0])
                print(f"{rival.subject} against ours in float32, relative L2 at worst: {distance:.1e}", flush=True)
                if not distance <= BOUND:
                    raise PeerError(f"{rival.subject} differs from ours by {distance:.1e} in float32, over {BOUND:.0e}")
