"""The Arrow schema of an answer, and the records that travel in its metadata."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from stratoscope_wire.dtypes import ARROW_TYPES
from stratoscope_wire.errors import StreamCorruptError
from stratoscope_wire.request import Dtype
from stratoscope_wire.sites import Column

KEY_FIELDS: Final = (
    pa.field("stimulus_id", pa.utf8(), nullable=False),
    pa.field("selector", pa.utf8(), nullable=False),
    pa.field("position", pa.int32(), nullable=False),
    pa.field("token_id", pa.int32(), nullable=False),
)
"""Columns that say what a row is; ``position`` and ``token_id`` are -1 in a pooled row."""


class _Metadata(BaseModel):
    """A record kept in Arrow metadata: one key per field, every value as text."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_metadata(self) -> dict[str, str]:
        fields = self.model_dump(exclude_none=True)
        return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in fields.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[Any, Any] | None) -> Self:
        try:
            return cls.model_validate({bytes(k).decode(): bytes(v).decode() for k, v in (metadata or {}).items()})
        except (ValidationError, UnicodeDecodeError) as error:
            raise StreamCorruptError(f"unreadable {cls.__name__} in the stream's metadata: {error}") from None


class StreamHeader(_Metadata):
    """Schema metadata: what the server is about to send."""

    protocol: str
    fingerprint: str
    request_id: str
    dtype: Dtype
    stimuli: int
    rows: int
    bytes: int


class BatchMark(_Metadata):
    """Metadata of a data batch.

    Attributes
    ----------
    seq
        0, 1, 2 ... without a gap.
    open
        Whether the last stimulus of this batch goes on in the next one.
    checksum
        Of the batch's contents and its ``seq``; see `stratoscope_wire.checksum`.
    """

    seq: int
    open: bool
    checksum: str


class Footer(_Metadata):
    """Metadata of the last, empty batch of a good stream: success, stated in band."""

    status: Literal["ok"]
    stimuli: int
    rows: int
    batches: int
    bytes: int
    checksum: str
    seconds: float


class ErrorRecord(_Metadata):
    """Metadata of the last, empty batch of a failed stream."""

    status: Literal["error"]
    code: str
    message: str
    retryable: bool
    request_id: str


def response_schema(columns: Sequence[Column], dtype: Dtype) -> pa.Schema:
    """Return the schema of an answer, without its header.

    Each column of activations is a ``FixedSizeList<dtype>[width]`` whose field metadata names site, layer, dtype and
    Hugging Face index; there are no nulls, dictionaries, extension types or compression.
    """
    return pa.schema([*KEY_FIELDS, *(_activation_field(column, dtype) for column in columns)])


def _activation_field(column: Column, dtype: Dtype) -> pa.Field:
    facts = {"site": column.site, "layer": column.layer, "dtype": dtype, "hf_index": column.hf_index}
    return pa.field(
        column.name,
        pa.list_(pa.field("item", ARROW_TYPES[dtype], nullable=False), column.width),
        nullable=False,
        metadata={key: str(value) for key, value in facts.items() if value is not None},
    )
