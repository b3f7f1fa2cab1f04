"""Reading an answer that is there already."""

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from stratoscope_wire.expected import Expected
from stratoscope_wire.intake import StreamIntake
from stratoscope_wire.schema import Footer, StreamHeader

PART_BYTES: Final = 1 << 20


class StreamDecoder:
    """Verifies an answer while iterating over it.

    Iterating gives what `StreamIntake.filled` does and raises what it and `StreamIntake.close` raise.

    Parameters
    ----------
    source
        The received bytes.
    expected
        What was asked for.
    """

    def __init__(self, source: bytes | memoryview | pa.Buffer, expected: Expected) -> None:
        self._bytes = memoryview(source).cast("B")
        self._intake = StreamIntake(expected)

    @property
    def header(self) -> StreamHeader | None:
        """What was announced, once it has been read."""
        return self._intake.header

    @property
    def footer(self) -> Footer | None:
        """What was stated at the end, once it has been read."""
        return self._intake.footer

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._bytes), PART_BYTES):
            yield from self._intake.write(self._bytes[start : start + PART_BYTES])
        self._intake.close()
