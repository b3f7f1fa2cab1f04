"""What becomes known of a request while it is answered, for the one line that the log has on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

_current: Final[ContextVar["Entry | None"]] = ContextVar("stratoscope_request", default=None)


@dataclass(slots=True)
class Entry:
    """One request.

    Attributes
    ----------
    request_id
        Its id.
    facts
        What is known of it so far.
    """

    request_id: str
    facts: dict[str, str | int | float] = field(default_factory=dict)


@contextmanager
def entry(request_id: str) -> Iterator[Entry]:
    """Begin the entry of a request; tasks and threads that it starts with its context belong to it too."""
    made = Entry(request_id)
    token = _current.set(made)
    try:
        yield made
    finally:
        _current.reset(token)


def current_entry() -> Entry | None:
    """Return the entry of the request that this code runs for, if it runs for one."""
    return _current.get()


def note(**facts: str | int | float) -> None:
    """Note facts about the request that this code runs for; without one, nothing happens."""
    made = _current.get()
    if made is not None:
        made.facts |= facts
