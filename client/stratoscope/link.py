"""The link to a server: how fast it is, and whether it pays to have answers compressed.

Compression leaves 0.79 of bfloat16 states and costs both sides 1.4 ns per byte together, so that a link of more than
about 150 MB/s is faster without it.
"""

import threading
from dataclasses import dataclass
from typing import Final, Literal

from stratoscope.errors import ConfigurationError
from stratoscope_wire.compression import Compression

CompressionSetting = Literal["auto", "none", "zstd"]
"""Whether answers are compressed; ``auto`` decides by the speed of the link."""

SETTINGS: Final = ("auto", "none", "zstd")

MEASURED_BYTES: Final = 4 << 20
"""Received before anything is decided, and again before it is decided anew."""

ON_BELOW: Final = 100e6
OFF_ABOVE: Final = 200e6
"""Bytes per second; between the two it stays as it is."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes that came, and the seconds in which nothing was done but waiting for them."""

    n_bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Transfer") -> "Transfer":
        return Transfer(self.n_bytes + other.n_bytes, self.seconds + other.seconds)


NOTHING: Final = Transfer()


def pays(transfer: Transfer, *, is_on: bool) -> bool:
    """Tell whether compression pays on a link.

    Parameters
    ----------
    transfer
        What was measured on it, in bytes as they were sent.
    is_on
        Whether answers are compressed now.
    """
    return transfer.n_bytes < (OFF_ABOVE if is_on else ON_BELOW) * transfer.seconds


class Link:
    """Decides how the next answer of one server is to be packed. Safe to share between threads.

    Parameters
    ----------
    setting
        What the user wants.
    is_loopback
        Whether the server is on this very machine: then nothing is ever compressed by itself.

    Raises
    ------
    ConfigurationError
        If there is no such setting.
    """

    def __init__(self, setting: CompressionSetting, *, is_loopback: bool) -> None:
        if setting not in SETTINGS:
            raise ConfigurationError(f"compression is {setting!r}; give one of {', '.join(SETTINGS)}")
        self._measures = setting == "auto" and not is_loopback
        self._compression: Compression | None = "zstd" if setting == "zstd" else None
        self._measured = NOTHING
        self._lock = threading.Lock()

    @property
    def compression(self) -> Compression | None:
        """What to ask for next."""
        return self._compression

    def learn(self, transfer: Transfer, offered: str) -> None:
        """Take into account how an answer came.

        Parameters
        ----------
        transfer
            What was measured while it came.
        offered
            What the server says it could compress with; nothing else is asked of it unless the user insists.
        """
        if not self._measures:
            return
        with self._lock:
            self._measured += transfer
            if self._measured.n_bytes < MEASURED_BYTES:
                return
            is_offered = "zstd" in [name.strip() for name in offered.split(",")]
            is_on = is_offered and pays(self._measured, is_on=self._compression is not None)
            self._compression = "zstd" if is_on else None
            self._measured = NOTHING
