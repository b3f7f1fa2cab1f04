"""The command line, ``stratoscope``."""

from stratoscope.cli.main import app, main

__all__ = ["app", "main"]
