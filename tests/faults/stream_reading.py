"""Reading the bytes of an answer with plain means: what came whole, and where its parts end."""

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

HEAD_END: Final = b"\r\n\r\n"


def body_of(raw: bytes) -> bytes:
    """Return what came of a chunked body, given the bytes on the wire from the status line on."""
    pieces = []
    at = raw.find(HEAD_END) + len(HEAD_END) if HEAD_END in raw else len(raw)
    while (line := raw.find(b"\r\n", at)) > at and (size := int(raw[at:line], 16)):
        pieces.append(raw[line + 2 : line + 2 + size])
        at = line + 2 + size + 2
    return b"".join(pieces)


def complete_stimuli(raw: bytes) -> list[str]:
    """Return the stimuli of which every row came, in order."""
    names: list[str] = []
    held: list[str] = []
    for batch, is_open in batches_of(body_of(raw)):
        held += [name for name in batch.column(0).unique().to_pylist() if name not in held]
        if not is_open:
            names, held = [*names, *held], []
    return names


def batches_of(body: bytes) -> Iterator[tuple[pa.RecordBatch, bool]]:
    """Yield every batch with rows that is there whole, and whether its last stimulus goes on."""
    try:
        reader = pa.ipc.open_stream(body)
        while True:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            if batch.num_rows == 0:
                return
            yield batch, metadata[b"open"] == b"true"
    except (pa.ArrowException, OSError, StopIteration):
        return


def message_ends(body: bytes) -> list[int]:
    """Return where each message of an Arrow stream ends: the schema, every batch, the footer."""
    source = pa.BufferReader(body)
    ends: list[int] = []
    while True:
        try:
            pa.ipc.read_message(source)
        except (EOFError, pa.ArrowException):
            return ends
        ends.append(source.tell())


def raw_offset(raw: bytes, position: int) -> int:
    """Return where on the wire a position of the body lies."""
    at = raw.index(HEAD_END) + len(HEAD_END)
    while True:
        line = raw.index(b"\r\n", at)
        size = int(raw[at:line], 16)
        if position <= size:
            return line + 2 + position
        position -= size
        at = line + 2 + size + 2
