"""Compression of an answer's batches, as Arrow's stream has it: each buffer by itself, behind its unpacked length.

Only zstd at its lowest level: of bfloat16 states it leaves 0.79, and lz4 leaves everything.
"""

from typing import Final, Literal

import pyarrow as pa

from stratoscope_wire.errors import StreamCorruptError
from stratoscope_wire.flatbuffer import Pairs, Table

Compression = Literal["zstd"]
"""How the batches of an answer may be packed."""

COMPRESSIONS_HEADER: Final = "X-Compressions"
"""Header of an answer: how the server could have packed it. One that lacks it knows no compression."""

COMPRESSIONS: Final[tuple[Compression, ...]] = ("zstd",)

ZSTD_LEVEL: Final = 1
ZSTD: Final = 1
BY_BUFFER: Final = 0
CODEC: Final = 0
METHOD: Final = 1
"""Numbers in Arrow's Message.fbs: of the codec, of the method, and of the fields that hold them."""

LENGTH_BYTES: Final = 8
NOT_PACKED: Final = -1
"""Stands in the place of the unpacked length before a buffer that is sent as it is."""


def write_options(compression: Compression | None) -> pa.ipc.IpcWriteOptions:
    """Return how Arrow is to write an answer."""
    codec = None if compression is None else pa.Codec(compression, ZSTD_LEVEL)
    return pa.ipc.IpcWriteOptions(compression=codec)


def check_codec(found: Table | None, due: Compression | None) -> None:
    """Check that a batch is packed as it was asked for.

    Raises
    ------
    StreamCorruptError
        If it is not.
    """
    if found is None and due is None:
        return
    if found is None:
        raise StreamCorruptError("a record batch is not compressed, which was asked for")
    if due is None:
        raise StreamCorruptError("a record batch is compressed, which was not asked for")
    if (found.number(CODEC, "b"), found.number(METHOD, "b")) != (ZSTD, BY_BUFFER):
        raise StreamCorruptError(f"a record batch is compressed in another way than {due}, which was asked for")


def inflated_bytes(buffers: Pairs, body: memoryview) -> int:
    """Return how long the buffers of a body say they are once they are unpacked.

    Parameters
    ----------
    buffers : int64 array of shape (n_buffers, 2)
        Start and length of each in the body.

    Raises
    ------
    StreamCorruptError
        If one lies outside of the body, or has no length before it.
    """
    total = 0
    for start, length in buffers.tolist():
        if length == 0:
            continue
        if start < 0 or length < LENGTH_BYTES or start + length > len(body):
            raise StreamCorruptError("a buffer of a compressed record batch lies outside of its body")
        n_bytes = int.from_bytes(body[start : start + LENGTH_BYTES], "little", signed=True)
        if n_bytes < NOT_PACKED:
            raise StreamCorruptError(f"a buffer of a compressed record batch announces {n_bytes} bytes")
        total += length - LENGTH_BYTES if n_bytes == NOT_PACKED else n_bytes
    return total
