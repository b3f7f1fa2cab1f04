"""What can go wrong around a request, a stimulus file and a run.

StratoscopeError
├── ConfigurationError (ValueError)    address, key or settings that cannot be used
│   └── ServersDifferError             several servers were given, and they serve different models
├── InvalidRequestError (ValueError)   a capture or stimulus that no server would accept
├── APIError                           the server answered with an error status
│   ├── BadRequestError                400
│   ├── AuthenticationError            401, 403
│   ├── NotFoundError                  404
│   ├── ConflictError                  409
│   ├── TooLargeError                  413
│   ├── UnprocessableRequestError      422
│   ├── RateLimitedError               429
│   └── ServerError                    500 and above
│       └── ServerUnavailableError     503
├── APIConnectionError                 the server was not reached, or the connection broke
│   └── APITimeoutError                ... or it was silent for too long
├── AnswerError                        the server answered, but not with what was asked for
│   ├── IncompleteAnswerError          cut short, or the server failed after the first byte
│   └── CorruptAnswerError             damaged, contradictory or foreign; nothing of it is kept
│       └── ModelChangedError          another model answers than before
├── StimulusError (ValueError)         a stimulus file or table that cannot be used
├── RunError                           a run folder that cannot be used
│   ├── RunNotFoundError               there is none
│   ├── RunLockedError                 another process writes to it
│   ├── FingerprintChangedError        it was collected from another model
│   ├── CaptureChangedError            it holds another capture
│   ├── StimulusChangedError           its stimuli are not those of the table
│   ├── RunIncompleteError             stimuli are missing in it
│   ├── ShardDamagedError              a file of it is missing, short or altered
│   ├── LedgerDamagedError             its ledger is no sound SQLite file
│   └── StorageError (OSError)         the disk fails, or does not let it be written
│       └── StorageFullError           the disk is full
├── CollectError                       collection stopped; the same command goes on with it
│   ├── StimulusRefusedError           the server refuses a stimulus for good
│   └── ServerLostError                too many requests in a row failed
└── ExportError (ValueError)           an export that cannot be written as asked
"""

from collections.abc import Sequence


class StratoscopeError(Exception):
    """Base of every error of the client."""


class ConfigurationError(StratoscopeError, ValueError):
    """An address, key or setting that cannot be used."""


class ServersDifferError(ConfigurationError):
    """Several servers were given to share one collection, but they do not serve the same model."""


class InvalidRequestError(StratoscopeError, ValueError):
    """A capture or stimulus that no server would accept; nothing was sent."""


class APIError(StratoscopeError):
    """The server answered with an error status.

    Attributes
    ----------
    status : int
        HTTP status.
    code : str
        The server's stable name of the fault; empty if the answer did not come from a Stratoscope server.
    request_id : str or None
        To be found again in the server's log.
    retryable : bool
        Whether the same request may succeed later.
    retry_after_s : float or None
        Seconds to wait before that, where the server said so.
    stimulus : str or None
        Id of the stimulus at fault.
    limit, value : int or None
        The limit, and what was found.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        request_id: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        stimulus: str | None = None,
        limit: int | None = None,
        value: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.stimulus = stimulus
        self.limit = limit
        self.value = value


class BadRequestError(APIError):
    """400: the request is malformed."""


class AuthenticationError(APIError):
    """401 or 403: the key is missing or wrong."""


class NotFoundError(APIError):
    """404: there is no such route; the address is probably not that of a Stratoscope server."""


class ConflictError(APIError):
    """409: the request contradicts the server's state."""


class TooLargeError(APIError):
    """413: the request or its answer is above a limit."""


class UnprocessableRequestError(APIError):
    """422: the request cannot be answered as it is."""


class RateLimitedError(APIError):
    """429: the server has too much to do."""


class ServerError(APIError):
    """500 and above: the server failed."""


class ServerUnavailableError(ServerError):
    """503: the server is starting, stopping or overloaded."""


class APIConnectionError(StratoscopeError):
    """The server was not reached, or the connection broke.

    Attributes
    ----------
    retryable : bool
        Whether trying again can help.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class APITimeoutError(APIConnectionError):
    """The server was silent for longer than the timeout."""


class AnswerError(StratoscopeError):
    """The server answered, but not with what was asked for.

    Attributes
    ----------
    retryable : bool
        Whether trying again can help.
    request_id : str or None
        To be found again in the server's log.
    """

    def __init__(self, message: str, *, retryable: bool = False, request_id: str | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.request_id = request_id


class IncompleteAnswerError(AnswerError):
    """The answer was cut short, or the server failed after its first byte. Complete stimuli in it were kept."""


class CorruptAnswerError(AnswerError):
    """The answer is damaged, contradicts itself or was not asked for. Nothing of it is kept, and it is not retried."""


class ModelChangedError(CorruptAnswerError):
    """Another model, dtype or engine answers than the one whose card was read."""


class StimulusError(StratoscopeError, ValueError):
    """A stimulus file or table that cannot be used; the message names file, row and column."""


class RunError(StratoscopeError):
    """A run folder that cannot be used."""


class RunNotFoundError(RunError):
    """The folder holds no run."""


class RunLockedError(RunError):
    """Another process is writing to the run."""


class FingerprintChangedError(RunError):
    """The run was collected from another model than the one that answers now."""


class CaptureChangedError(RunError):
    """The run holds another capture than the one asked for now."""


class StimulusChangedError(RunError):
    """The run's stimuli are not those of the table: one has other content, or is missing in the table."""


class RunIncompleteError(RunError):
    """Stimuli of the run have no activations yet."""


class ShardDamagedError(RunError):
    """A committed file of the run is missing, short or altered."""


class LedgerDamagedError(RunError):
    """The ledger of the run is no sound SQLite file."""


class StorageError(RunError, OSError):
    """The disk failed or refused; nothing half-written is left, and what was committed before stays.

    Attributes
    ----------
    errno : int or None
        The system's number of the fault, where it is known.
    """

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class StorageFullError(StorageError):
    """The disk is full; free some space, and the same command goes on."""


class CollectError(StratoscopeError):
    """Collection stopped early. What was verified is committed; the same command goes on with the rest."""


class StimulusRefusedError(CollectError):
    """The server refuses stimuli for good.

    Attributes
    ----------
    stimulus_ids : tuple of str
    """

    def __init__(self, message: str, stimulus_ids: Sequence[str]) -> None:
        super().__init__(message)
        self.stimulus_ids = tuple(stimulus_ids)


class ServerLostError(CollectError):
    """Too many requests in a row failed."""


class ExportError(StratoscopeError, ValueError):
    """An export that cannot be written as asked."""
