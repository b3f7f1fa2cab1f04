"""How the log is written: as text, or as JSON lines; every line of a request carries its id."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

from stratoscope_server.journal import current_entry

LogFormat = Literal["text", "json"]

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(about)s%(message)s%(facts)s"


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(TEXT)

    def format(self, record: logging.LogRecord) -> str:
        request_id = _request_id(record)
        record.about = f"{request_id} " if request_id else ""
        record.facts = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        return super().format(record)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id(record):
            line["request_id"] = request_id
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logs(log_format: LogFormat) -> None:
    """Write everything from level INFO on to standard error. Called once, before anything is logged."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    handler.addFilter(_stamp)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _stamp(record: logging.LogRecord) -> bool:
    entry = current_entry()
    if entry is not None:
        record.request_id = entry.request_id
    return True


def _request_id(record: logging.LogRecord) -> str | None:
    return getattr(record, "request_id", None)
