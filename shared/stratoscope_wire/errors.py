"""Errors of the wire.

WireError
 ├─ BlockError                 an engine handed over what must not be sent
 └─ StreamError                what was received is not a good answer
     ├─ StreamCutError         it ended early; complete stimuli in it are good
     ├─ StreamCorruptError     it contradicts itself or the request; nothing of it may be kept
     │   └─ FingerprintMismatchError   another model answered
     └─ RemoteStreamError      the server says that it failed; complete stimuli are good
"""

from pydantic import BaseModel, ConfigDict


class WireError(Exception):
    """Base of every error of this package."""


class BlockError(WireError):
    """What an engine handed over is incomplete, misshapen or not finite; it is not sent."""


class StreamError(WireError):
    """What was received is not a complete, undamaged answer."""


class StreamCutError(StreamError):
    """The stream ended before its footer. Stimuli that arrived complete are good; ask for the others again."""


class StreamCorruptError(StreamError):
    """The stream contradicts itself, its checksums or the request. Nothing of it may be kept."""


class FingerprintMismatchError(StreamCorruptError):
    """The answer comes from another model, dtype or engine than the one asked for."""


class RemoteStreamError(StreamError):
    """The server reported a failure after the first byte.

    Attributes
    ----------
    code, retryable
        As the server gave them.
    """

    def __init__(self, message: str, *, code: str, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class ErrorDetail(BaseModel):
    """What went wrong, for a person and for a program.

    Attributes
    ----------
    code
        Stable, lower-case name of the fault.
    message
        Names the item, the limit and the fix.
    request_id
        To be found again in the server's log.
    field, stimulus, limit, value
        The place in the request, the stimulus id, the limit and what was found, where they apply.
    errors
        Every finding about the request's fields, each with ``field`` and ``message``.
    """

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    request_id: str
    retryable: bool = False
    field: str | None = None
    stimulus: str | None = None
    limit: int | None = None
    value: int | None = None
    errors: list[dict[str, str]] | None = None


class ErrorBody(BaseModel):
    """The JSON body of every answer that is not a success."""

    model_config = ConfigDict(frozen=True)

    error: ErrorDetail
