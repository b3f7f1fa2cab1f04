"""Several servers of the same model: what they have in common, and how a collection shares them."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from stratoscope.breaker import Breaker
from stratoscope.client import Client
from stratoscope.errors import ConfigurationError, ServersDifferError
from stratoscope.retries import RetryPolicy
from stratoscope.sources import Source
from stratoscope_wire import Limits, ModelCard

NO_RETRY: Final = RetryPolicy(max_retries=0)
"""For one of several servers: what it fails at goes back to the queue, and another may take it at once."""

PACKED_UNDER: Final = (
    "max_body_bytes",
    "max_stimuli",
    "max_tokens_per_text",
    "max_tokens_per_request",
    "max_response_bytes",
)
"""Limits that decide how requests are packed."""


def as_clients(clients: Client | Sequence[Client]) -> tuple[Client, ...]:
    """Return the clients, one or several, as a tuple.

    Raises
    ------
    ConfigurationError
        If there is none, or two have the same address.
    """
    chosen = (clients,) if isinstance(clients, Client) else tuple(clients)
    if not chosen:
        raise ConfigurationError("there is no client; give at least one")
    addresses = [client.base_url for client in chosen]
    if len(set(addresses)) != len(addresses):
        raise ConfigurationError(f"a server is named twice: {', '.join(addresses)}; name each once")
    return chosen


def common_card(clients: Sequence[Client]) -> ModelCard:
    """Return the model card that all servers have.

    Raises
    ------
    ServersDifferError
        If they differ.
    StratoscopeError
        If one does not answer.
    """
    first, *others = clients
    card = first.model()
    for other in others:
        theirs = other.model()
        if theirs.fingerprint != card.fingerprint:
            raise ServersDifferError(
                f"{first.base_url} serves {card.model} with fingerprint {card.fingerprint}, {other.base_url} serves "
                f"{theirs.model} with fingerprint {theirs.fingerprint}; only servers of the very same model can share "
                "a collection"
            )
    return card


def smallest_limits(clients: Sequence[Client]) -> Limits:
    """Return limits under which every server accepts a request."""
    limits = [client.limits() for client in clients]
    return limits[0].model_copy(update={name: min(getattr(one, name) for one in limits) for name in PACKED_UNDER})


def as_sources(clients: Sequence[Client], max_failures: int) -> list[Source]:
    """Turn clients into sources of one collection."""
    breaker = Breaker(max_failures=max_failures)
    if len(clients) == 1:
        return [Source(clients[0].base_url, clients[0].try_fetch, breaker, is_alone=True)]
    return [
        Source(client.base_url, partial(client.try_fetch, policy=NO_RETRY), breaker, is_alone=False)
        for client in clients
    ]
