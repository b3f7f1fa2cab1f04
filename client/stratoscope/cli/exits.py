"""Exit codes: what a script may rely on. They are listed in ``docs/cli.md``."""

from typing import Final

from stratoscope import errors

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3
SERVER: Final = 4
LOCKED: Final = 5
MISMATCH: Final = 6
STORAGE: Final = 7
DAMAGED: Final = 8
INTERRUPTED: Final = 130

BY_ERROR: Final[tuple[tuple[type[Exception], int], ...]] = (
    (errors.RunLockedError, LOCKED),
    (errors.FingerprintChangedError, MISMATCH),
    (errors.CaptureChangedError, MISMATCH),
    (errors.StimulusChangedError, MISMATCH),
    (errors.ModelChangedError, MISMATCH),
    (errors.ServersDifferError, MISMATCH),
    (errors.ShardDamagedError, DAMAGED),
    (errors.LedgerDamagedError, DAMAGED),
    (errors.RunIncompleteError, INCOMPLETE),
    (errors.StimulusRefusedError, INCOMPLETE),
    (errors.ServerLostError, SERVER),
    (errors.APIConnectionError, SERVER),
    (errors.ServerError, SERVER),
    (errors.RateLimitedError, SERVER),
    (errors.AnswerError, SERVER),
    (errors.RunNotFoundError, USAGE),
    (ValueError, USAGE),
    (OSError, STORAGE),
)


def exit_code(error: Exception) -> int:
    """Return the exit code for an error of the package or the system: that of the first class it belongs to.

    Those that are also a `ValueError` say that something given cannot be used.
    """
    return next((code for kind, code in BY_ERROR if isinstance(error, kind)), FAILED)
