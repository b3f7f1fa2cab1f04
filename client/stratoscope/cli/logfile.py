"""The log file: what the client did, one JSON object a line."""

import json
import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from stratoscope.connection import API_KEY_VARIABLE
from stratoscope.errors import ConfigurationError

LogFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Append what the client does to a file, one JSON object a line.")
]

HIDDEN: Final = "[hidden]"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON: ``time``, ``level``, ``logger``, ``message`` and the record's facts.

    Parameters
    ----------
    secret
        Never written, whatever it is part of.
    """

    def __init__(self, secret: str | None) -> None:
        super().__init__()
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._safe(record.getMessage()),
        }
        facts = getattr(record, "facts", {})
        return json.dumps(
            line | {name: self._safe(value) if isinstance(value, str) else value for name, value in facts.items()},
            ensure_ascii=False,
        )

    def _safe(self, text: str) -> str:
        return text.replace(self._secret, HIDDEN) if self._secret else text


class _LogFile(logging.FileHandler):
    """Writes the log for as long as that is possible; work is not stopped for it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, ARG002 - the name is logging's
        root = logging.getLogger("stratoscope")
        root.removeHandler(self)
        fault = sys.exc_info()[1]
        root.warning("the log file %s ends here, it cannot be written any more: %s", self.baseFilename, fault)
        with suppress(OSError):
            self.close()


def log_to(path: Path) -> None:
    """Append everything that the client logs to a file.

    Raises
    ------
    ConfigurationError
        If it cannot be written.
    """
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"the log file {path} cannot be written: {error.strerror}; name another one") from None
    handler.setFormatter(JsonLines(os.environ.get(API_KEY_VARIABLE)))
    root = logging.getLogger("stratoscope")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
