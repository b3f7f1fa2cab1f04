"""What of a job has been delivered: each prompt once, whole, and with its own rows."""

from itertools import groupby

import numpy as np

from stratoscope_server.engines.protocol import Prompt
from stratoscope_server.selection import row_keys
from stratoscope_wire import Block, BlockError


class Receipt:
    """Holds what an engine delivers against what it was asked for.

    A reader that checks nothing takes every row for what its keys say, so that a wrong one must not leave.

    Parameters
    ----------
    prompts
        Of the job.
    """

    def __init__(self, prompts: tuple[Prompt, ...]) -> None:
        self._due = {prompt.stimulus_id: prompt for prompt in prompts}

    def check(self, block: Block) -> None:
        """Take a block's prompts as delivered.

        Raises
        ------
        BlockError
            If a prompt is delivered that was not asked for or is there already, or not with exactly its rows.
        """
        came = [stimulus_id for stimulus_id, _ in groupby(block.stimulus_id)]
        for stimulus_id in came:
            if stimulus_id not in self._due:
                raise BlockError(f"the engine delivered stimulus {stimulus_id!r}, which is not due")
        prompts = [self._due.pop(stimulus_id) for stimulus_id in dict.fromkeys(came)]
        if not prompts:
            return
        ids, selectors, positions, token_ids = row_keys(prompts)
        if not (
            ids == list(block.stimulus_id)
            and selectors == list(block.selector)
            and np.array_equal(positions, block.position)
            and np.array_equal(token_ids, block.token_id)
        ):
            raise BlockError(f"the engine delivered other rows than those of {', '.join(map(repr, came))}")
