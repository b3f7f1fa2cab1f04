"""What the benchmark is made of: one line per module, with its sizes at either scale."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final, Literal

from stratoscope.experiments import EXPERIMENTS
from throughput.figure import Figure
from throughput.peer import ROOT
from throughput.rivals import RIVALS, VLLM

Scale = Literal["small", "full"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A module with a function ``measure``, and what that is given.

    Attributes
    ----------
    module
        In `throughput`.
    small, full
        Arguments at either scale; ``small`` takes a minute at most.
    """

    module: str
    small: Mapping[str, Any] = field(default_factory=dict)
    full: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, scale: Scale) -> list[Figure]:
        """Run the module."""
        found: list[Figure] = import_module(f"throughput.{self.module}").measure(
            **(self.small if scale == "small" else self.full)
        )
        return found


FULL_RIVALS: Final = (*RIVALS, VLLM) if (ROOT / VLLM.environment).exists() else RIVALS

STAGES: Final = {
    "engine": Stage(
        "engine", {"n_texts": 96, "rounds": 2, "searched": (32,)}, {"n_texts": 2000, "rounds": 2, "rivals": FULL_RIVALS}
    ),
    "merging": Stage(
        "merging",
        {"n_stimuli": 96, "rounds": 1, "budgets": (1024,), "threads": (2,)},
        {"rounds": 2, "budgets": (1024,), "threads": (1, 2)},
    ),
    "job": Stage("job", {"experiments": EXPERIMENTS[1:2]}, {"experiments": EXPERIMENTS}),
    "controls": Stage(
        "job", {"experiments": EXPERIMENTS[1:2], "n_shuffles": 1}, {"experiments": EXPERIMENTS, "n_shuffles": 5}
    ),
    "stream": Stage("stream", {"n_texts": 4, "rounds": 2}, {"n_texts": 8, "rounds": 5, "memory_factor": 10}),
    "store": Stage("store", {"n_stimuli": 128}, {"n_stimuli": 1024, "d_model": 8192, "n_layers": 6, "rounds": 5}),
    "fitting": Stage("fitting"),
    "memory": Stage("memory", {}, {"request_mib": 16, "shard_mib": 32}),
    "scaling": Stage("scaling", {}, {"texts": (256, 512, 1024, 2048), "stimuli": (6250, 25000, 100000), "rounds": 3}),
}
