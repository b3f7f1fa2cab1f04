"""What a fault is, and the world in which it is injected."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tests.faults.tally import Tally

Scale = Literal["small", "full"]
Engine = Literal["synthetic", "torch", "vllm"]

ROOT: Final = Path(__file__).resolve().parents[2]


class NotHereError(Exception):
    """The fault cannot be injected on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class World:
    """Where a fault is injected.

    Attributes
    ----------
    scale
        How much of it: ``small`` in CI, ``full`` before a release.
    random
        The only source of chance; its seed is printed.
    folder
        Empty, for this fault alone.
    engine
        What the server runs.
    python
        Interpreter of the server; another one for vLLM.
    """

    scale: Scale
    random: random.Random
    folder: Path
    engine: Engine = "synthetic"
    python: str = ""

    def pick(self, small: int, full: int) -> int:
        """Return how often to do something."""
        return small if self.scale == "small" else full


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of the campaign.

    Attributes
    ----------
    id
        Its name in the list of faults, such as ``F7``.
    title
        What happens, in a few words.
    inject
        Makes it happen, checks what came of it and counts.
    small_s, full_s
        Longest that it may take in seconds, at either scale. After that it is ended and counts as a hang.
    engines
        Those that it makes sense for.
    """

    id: str
    title: str
    inject: Callable[[World], Tally]
    small_s: float = 120
    full_s: float = 900
    engines: tuple[Engine, ...] = ("synthetic",)

    def limit_s(self, scale: Scale) -> float:
        return self.small_s if scale == "small" else self.full_s
