"""When to try again, and after how long: the only place where that is decided."""

import random
from dataclasses import dataclass

from stratoscope.errors import (
    APIConnectionError,
    APIError,
    ConfigurationError,
    IncompleteAnswerError,
    RateLimitedError,
    StratoscopeError,
)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter.

    Attributes
    ----------
    max_retries
        Further attempts after a failed one. An answer that was cut but brought new stimuli starts the count anew.
    base_s, cap_s
        The n-th wait is drawn from ``[0, min(cap_s, base_s * 2**n)]`` seconds.
    max_busy_retries
        Likewise after a 429 that says when to come back: a server that is busy has not failed.
    max_retry_after_s
        A server that asks for a longer wait than this is given up instead.
    """

    max_retries: int = 7
    max_busy_retries: int = 100
    base_s: float = 0.5
    cap_s: float = 60.0
    max_retry_after_s: float = 120.0

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ConfigurationError(f"max_retries is {self.max_retries}; it must be 0 or more")

    def wait_s(self, error: StratoscopeError, n_failures: int) -> float | None:
        """Return the seconds to wait before the next attempt, or ``None`` to give up.

        Parameters
        ----------
        error
            Why the last attempt failed.
        n_failures
            Failed attempts in a row, this one included.
        """
        asked = error.retry_after_s if isinstance(error, APIError) else None
        busy_s = asked if isinstance(error, RateLimitedError) and self.max_retries else None
        if not is_retryable(error) or n_failures > (self.max_retries if busy_s is None else self.max_busy_retries):
            return None
        if asked is not None and asked > self.max_retry_after_s:
            return None
        if busy_s is not None:
            # No longer than that, however often: who has waited long would hardly ever be let in.
            return busy_s + random.uniform(0, busy_s)  # noqa: S311
        # Jitter comes on top of what the server asked for, or all its clients would come back in the same instant.
        return (asked or 0.0) + random.uniform(0, min(self.cap_s, self.base_s * 2 ** (n_failures - 1)))  # noqa: S311


def is_retryable(error: StratoscopeError) -> bool:
    """Tell whether the same request may succeed later; never for a corrupt answer or a changed model."""
    return isinstance(error, APIError | APIConnectionError | IncompleteAnswerError) and error.retryable
