"""Stratoscope: what every layer of a large language model knows."""

from stratoscope_wire import __version__

__all__ = ["__version__"]
