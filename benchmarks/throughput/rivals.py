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
        Folder below the repository.
    sizes
        Batch sizes to choose from; empty for those that the benchmark searches.
    every
        It runs every so many-th text: a slow one need not run them all to tell its rate. Odd, as two kinds alternate.
    """

    subject: str
    module: str
    environment: str
    way: str
    sizes: tuple[int, ...] = ()
    every: int = 1


RIVALS: Final = (
    Rival("Hugging Face, one by one", "huggingface", ".venv-peers/huggingface", "hooks", (1,), 7),
    Rival("Hugging Face, batched", "huggingface", ".venv-peers/huggingface", "hooks"),
    Rival("Hugging Face, batched, resid_post only", "huggingface", ".venv-peers/huggingface", "output_hidden_states"),
    Rival("TransformerLens", "transformerlens", ".venv-peers/transformerlens", "run_with_cache"),
    Rival("nnsight", "tracing", ".venv-peers/nnsight", "trace"),
)

VLLM: Final = Rival("vLLM with hooks (vllm-lens)", "vllm_lens", ".venv-vllm", "lens", (256,), 7)
"""Only where ``make setup-vllm`` was called: 3.5 GB. It delivers every token's states, as its design does."""
