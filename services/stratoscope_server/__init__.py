"""The Stratoscope server: hidden states of a language model as an Arrow stream."""

from stratoscope_wire import __version__

__all__ = ["__version__"]
