"""The peers of the engine, each with its module in `peers`, its environment and its way of running."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Rival:
    """A way of a peer.

    Attributes
    ----------
    module
        In `peers`.
    environment
        Folder below ``.venv-peers``.
    sizes
        Batch sizes to choose from; empty for those that the benchmark searches.
    """

    subject: str
    module: str
    environment: str
    way: str
    sizes: tuple[int, ...] = ()


RIVALS: Final = (
    Rival("Hugging Face, one by one", "huggingface", "huggingface", "hooks", (1,)),
    Rival("Hugging Face, batched", "huggingface", "huggingface", "hooks"),
    Rival("Hugging Face, batched, resid_post only", "huggingface", "huggingface", "output_hidden_states"),
    Rival("TransformerLens", "transformerlens", "transformerlens", "run_with_cache"),
    Rival("nnsight", "tracing", "nnsight", "trace"),
)
