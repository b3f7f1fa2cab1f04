"""Counts what was injected, and says on standard error what was not survived."""

import sys

from tests.faults.tally import Tally, one


class Verdicts:
    """Collects judgements one by one.

    Attributes
    ----------
    tally
        Their sum.
    """

    def __init__(self) -> None:
        self.tally = Tally()

    def judge(self, good: bool, what: object) -> None:
        """Count one injection; `what` is told if it was not survived."""
        self.tally += one(good)
        if not good:
            sys.stderr.write(f"NOT SURVIVED: {what}\n")
