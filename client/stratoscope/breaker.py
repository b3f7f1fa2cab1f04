"""A circuit breaker: when to leave a failing server alone, and when to try it again. It has no clock."""

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Breaker:
    """How far a server is trusted. Every event gives a new breaker; times are seconds of any one clock.

    Closed, it lets everything pass. So many failures in a row open it: nothing passes. After a rest it is half-open:
    one request passes as a trial. Success closes it, failure opens it for twice as long.

    Attributes
    ----------
    max_failures
        Failures in a row that open it.
    rest_s, longest_rest_s
        How long it first stays open, and at most.
    failures
        In a row, up to now.
    openings
        In a row, up to now.
    until
        When it may be tried again; ``None`` while it is closed.
    on_trial
        Whether the one request of a half-open breaker is under way.
    """

    max_failures: int = 3
    rest_s: float = 5.0
    longest_rest_s: float = 60.0
    failures: int = 0
    openings: int = 0
    until: float | None = None
    on_trial: bool = False

    def state(self, now: float) -> State:
        """Name the state."""
        if self.until is None:
            return "closed"
        return "open" if now < self.until else "half-open"

    def admits(self, now: float) -> bool:
        """Tell whether a request may be sent."""
        return self.until is None or (now >= self.until and not self.on_trial)

    def sent(self, now: float) -> "Breaker":
        """Note that a request was sent, which it admitted."""
        return replace(self, on_trial=True) if self.state(now) == "half-open" else self

    def succeeded(self) -> "Breaker":
        """Note that a request succeeded."""
        return replace(self, failures=0, openings=0, until=None, on_trial=False)

    def failed(self, now: float, *, is_grave: bool = False) -> "Breaker":
        """Note that a request failed; a grave failure opens it at once."""
        counted = replace(self, failures=self.failures + 1)
        if self.state(now) == "open":
            # Sent before it opened, and no news.
            return counted
        if self.state(now) == "closed" and counted.failures < self.max_failures and not is_grave:
            return counted
        rest_s = min(self.longest_rest_s, self.rest_s * 2**self.openings)
        return replace(counted, openings=self.openings + 1, until=now + rest_s, on_trial=False)
