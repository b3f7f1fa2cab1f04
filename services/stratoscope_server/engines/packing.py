"""Packing prompts into batches by length, under a token budget."""

from collections.abc import Sequence

from stratoscope_server.engines.protocol import Prompt


def pack(prompts: Sequence[Prompt], max_batch_tokens: int) -> list[list[Prompt]]:
    """Group prompts of like length so that no padded batch exceeds the budget.

    A batch costs its longest prompt times its number of prompts; a prompt beyond the budget is a batch of its own.

    Parameters
    ----------
    prompts
        In any order.
    max_batch_tokens
        Padded tokens per batch, at most.

    Returns
    -------
    Batches of prompts, shortest first, so that the first rows leave early.
    """
    batches: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda prompt: prompt.n_tokens):
        if batches and prompt.n_tokens * (len(batches[-1]) + 1) <= max_batch_tokens:
            batches[-1].append(prompt)
        else:
            batches.append([prompt])
    return batches
