"""Taking an answer apart into batches and their metadata, and putting together another one that Arrow can read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import pyarrow as pa

Metadata = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Forged:
    """An answer in its parts.

    Attributes
    ----------
    parts
        Every batch with its metadata; the last is the footer.
    """

    schema: pa.Schema
    parts: tuple[tuple[pa.RecordBatch, Metadata], ...]

    @classmethod
    def of(cls, body: bytes) -> Self:
        reader = pa.ipc.open_stream(body)
        parts: list[tuple[pa.RecordBatch, Metadata]] = []
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return cls(reader.schema, tuple(parts))
            parts.append((batch, dict(metadata)))

    def to_bytes(self, *, end: bool = True) -> bytes:
        sink = pa.BufferOutputStream()
        writer = pa.ipc.new_stream(sink, self.schema)
        for batch, metadata in self.parts:
            writer.write_batch(batch.replace_schema_metadata(self.schema.metadata), custom_metadata=metadata)
        if end:
            writer.close()
        return bytes(sink.getvalue())

    def with_header(self, **changes: str | None) -> "Forged":
        return replace(self, schema=self.schema.with_metadata(_changed(self.schema.metadata, changes)))

    def with_mark(self, number: int, **changes: str | None) -> "Forged":
        """Change the metadata of a batch; -1 is the footer."""
        parts = list(self.parts)
        batch, metadata = parts[number]
        parts[number] = (batch, _changed(metadata, changes))
        return replace(self, parts=tuple(parts))

    def in_order(self, numbers: Sequence[int]) -> "Forged":
        """Take these parts, in this order."""
        return replace(self, parts=tuple(self.parts[number] for number in numbers))


def _changed(metadata: Metadata, changes: dict[str, str | None]) -> Metadata:
    changed = dict(metadata)
    for key, value in changes.items():
        changed.pop(key.encode(), None)
        if value is not None:
            changed[key.encode()] = value.encode()
    return changed
