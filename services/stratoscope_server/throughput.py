"""How fast a server works, measured on the requests that it has finished."""

from typing import Final

FADE: Final = 0.9
"""Weight that a measurement keeps when the next one comes: about ten requests count."""


class Throughput:
    """Tokens per second while anything runs."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: float, seconds: float) -> None:
        """Take in what was done in the time since the last call in which anything ran."""
        self._tokens = FADE * self._tokens + tokens
        self._seconds = FADE * self._seconds + seconds

    def seconds_for(self, tokens: float) -> float:
        """Return how long so many tokens will take; 0 as long as nothing was measured."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0
