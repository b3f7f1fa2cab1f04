"""Stratoscope: what every layer of a large language model knows.

Names are imported when they are first used, so that importing the package costs nothing.
"""

import logging
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stratoscope.activations import Activations
    from stratoscope.async_client import AsyncClient
    from stratoscope.client import Client
    from stratoscope.collection import CollectSettings, Progress, collect
    from stratoscope.errors import (
        AnswerError,
        APIConnectionError,
        APIError,
        APITimeoutError,
        CollectError,
        RunError,
        StimulusError,
        StratoscopeError,
    )
    from stratoscope.exports import export
    from stratoscope.planning import CollectionPlan, plan_collection
    from stratoscope.retries import RetryPolicy
    from stratoscope.stimuli import StimulusTable, load_stimuli
    from stratoscope.store.repair import repair, verify
    from stratoscope.store.run import Run
    from stratoscope_wire import SpanSelector, Stimulus, __version__

__all__ = [
    "APIConnectionError",
    "APIError",
    "APITimeoutError",
    "Activations",
    "AnswerError",
    "AsyncClient",
    "Client",
    "CollectError",
    "CollectSettings",
    "CollectionPlan",
    "Progress",
    "RetryPolicy",
    "Run",
    "RunError",
    "SpanSelector",
    "Stimulus",
    "StimulusError",
    "StimulusTable",
    "StratoscopeError",
    "__version__",
    "collect",
    "export",
    "load_stimuli",
    "plan_collection",
    "repair",
    "verify",
]

_HOMES: Final[Mapping[str, str]] = {
    "APIConnectionError": "stratoscope.errors",
    "APIError": "stratoscope.errors",
    "APITimeoutError": "stratoscope.errors",
    "Activations": "stratoscope.activations",
    "AnswerError": "stratoscope.errors",
    "AsyncClient": "stratoscope.async_client",
    "Client": "stratoscope.client",
    "CollectError": "stratoscope.errors",
    "CollectSettings": "stratoscope.collection",
    "CollectionPlan": "stratoscope.planning",
    "Progress": "stratoscope.collection",
    "RetryPolicy": "stratoscope.retries",
    "Run": "stratoscope.store.run",
    "RunError": "stratoscope.errors",
    "SpanSelector": "stratoscope_wire",
    "Stimulus": "stratoscope_wire",
    "StimulusError": "stratoscope.errors",
    "StimulusTable": "stratoscope.stimuli",
    "StratoscopeError": "stratoscope.errors",
    "__version__": "stratoscope_wire",
    "collect": "stratoscope.collection",
    "export": "stratoscope.exports",
    "load_stimuli": "stratoscope.stimuli",
    "plan_collection": "stratoscope.planning",
    "repair": "stratoscope.store.repair",
    "verify": "stratoscope.store.repair",
}

# What the client logs goes nowhere unless the program says where.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'stratoscope' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
