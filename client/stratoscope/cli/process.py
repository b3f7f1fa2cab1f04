"""A command as a process: signals, warnings, and one line on stderr with an exit code for whatever goes wrong."""

import logging
import os
import shlex
import signal
import sys
import warnings
from typing import Final, NoReturn, TextIO

import typer

from stratoscope.cli import exits
from stratoscope.cli.main import app
from stratoscope.errors import StratoscopeError
from stratoscope_wire.tracing import flush_tracing, start_tracing

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


def main() -> None:
    """Run a command; errors of the package and of the system become one line on stderr and an exit code."""
    warnings.showwarning = _show_warning
    logging.getLogger("stratoscope").addHandler(_Stderr(logging.WARNING))
    # Both are set, since a process that was started in the background ignores SIGINT.
    for number in SIGNALS:
        signal.signal(number, _stop)
    if fault := start_tracing("stratoscope", os.environ):
        typer.echo(f"stratoscope: {fault}", err=True)
    try:
        app()
    except (StratoscopeError, OSError) as error:
        _end(str(error), exits.exit_code(error))
    except _Stopped:
        again = shlex.join(["stratoscope", *sys.argv[1:]])
        _end(f"interrupted; run the same command again to go on: {again}", exits.INTERRUPTED)


class _Stopped(BaseException):
    """A signal asked to stop. Not a KeyboardInterrupt, which the command-line library would answer itself."""


def _stop(_signal: int, _frame: object) -> None:
    for number in SIGNALS:
        signal.signal(number, _end_at_once)
    raise _Stopped


def _end_at_once(_signal: int, _frame: object) -> None:
    # What is being committed is then fetched again: a commit that is cut anywhere loses nothing that counted.
    os._exit(exits.INTERRUPTED)


class _Stderr(logging.Handler):
    """Tells a person what went on, looking for stderr when there is something to tell: a progress bar may hold it."""

    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(f"stratoscope: {record.getMessage()}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    typer.echo(f"warning: {message}", err=True)


def _end(message: str, code: int) -> NoReturn:
    logger.info("ended with exit code %d: %s", code, message)
    typer.echo(f"stratoscope: {message}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    flush_tracing()
    # Requests may still be in flight on threads inside Arrow; taking the interpreter down under them aborts it.
    os._exit(code)
