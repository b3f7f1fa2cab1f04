"""The command line, ``stratoscope``."""

from stratoscope.cli.main import app
from stratoscope.cli.process import main

__all__ = ["app", "main"]
