"""The contract between a Stratoscope server and its clients."""

from stratoscope_wire.card import Limits, ModelCard, SiteCard
from stratoscope_wire.decoder import StreamDecoder
from stratoscope_wire.encoder import Block, StreamEncoder
from stratoscope_wire.errors import (
    BlockError,
    ErrorBody,
    ErrorDetail,
    FingerprintMismatchError,
    RemoteStreamError,
    StreamCorruptError,
    StreamCutError,
    StreamError,
    WireError,
)
from stratoscope_wire.expected import Expected
from stratoscope_wire.intake import StreamIntake
from stratoscope_wire.plan import Plan, PlannedStimulus
from stratoscope_wire.request import ActivationsRequest, Capture, Message, Stimulus
from stratoscope_wire.selectors import Selector, SpanSelector, selector_label
from stratoscope_wire.sites import Column, capture_columns
from stratoscope_wire.version import CONTENT_TYPE, PROTOCOL_VERSION, __version__

__all__ = [
    "CONTENT_TYPE",
    "PROTOCOL_VERSION",
    "ActivationsRequest",
    "Block",
    "BlockError",
    "Capture",
    "Column",
    "ErrorBody",
    "ErrorDetail",
    "Expected",
    "FingerprintMismatchError",
    "Limits",
    "Message",
    "ModelCard",
    "Plan",
    "PlannedStimulus",
    "RemoteStreamError",
    "Selector",
    "SiteCard",
    "SpanSelector",
    "Stimulus",
    "StreamCorruptError",
    "StreamCutError",
    "StreamDecoder",
    "StreamEncoder",
    "StreamError",
    "StreamIntake",
    "WireError",
    "__version__",
    "capture_columns",
    "selector_label",
]
